//! Attention in tiles: the weights are never stored, and the backward pass has them again from each query's logarithm of its sum (Dao et al., 2022).

use candle_core::{D, DType, Result, Tensor, bail};

use super::launch::{ATTENTION, ATTENTION_TENSOR_CORES, Gpu, Launch, Module, Spread, suffix};
use crate::graph::{Output, dense};

/// The longest head that the kernels take.
const HEAD_MAX: usize = 128;
/// Lengths to which heads are padded for tensor cores.
const PADDED: [usize; 5] = [32, 64, 80, 96, HEAD_MAX];
/// Threads of a warp.
const WARP: usize = 32;
/// Rows that stay in a block in f32, a warp each.
const STAYING: usize = 8;
/// Rows of a tile in f32.
const TILE: usize = 32;

/// True where the kernels can do it.
pub(crate) fn attends(query: &Tensor, heads: usize) -> Result<bool> {
    Ok(query.device().is_cuda() && query.dim(D::Minus1)? / heads <= HEAD_MAX)
}

/// Where queries, keys and values lie: numbers between two tokens, and before the first.
#[derive(Clone, Copy)]
struct Places {
    query_stride: usize,
    key_stride: usize,
    /// Of keys and of values, in what holds them.
    starts: [usize; 2],
}

#[derive(Clone, Copy)]
struct Attention {
    batch: usize,
    heads: usize,
    head: usize,
    queries: usize,
    keys: usize,
    precision: DType,
    places: Places,
}

/// As [`crate::operations::attend`].
pub(crate) fn attend(query: &Tensor, key_value: &Tensor, heads: usize) -> Result<Tensor> {
    let (query, key_value) = (dense(query)?, dense(key_value)?);
    let (batch, queries, width) = query.dims3()?;
    let keys = key_value.dim(1)?;
    if key_value.dims() != [batch, keys, 2 * width] || key_value.dtype() != query.dtype() {
        bail!("{query:?} cannot attend to {key_value:?}");
    }
    let places = Places { query_stride: width, key_stride: 2 * width, starts: [0, width] };
    let attention = Attention::new([batch, heads, width, queries, keys], query.dtype(), places)?;
    let (out, sums) = attention.forward(&query, &key_value)?;
    out.of2("attend", [&query, &key_value], move |[query, key_value], out, gradient| {
        let gpu = Gpu::of(query)?;
        let dquery = gpu.output(query.shape(), query.dtype())?;
        let dkey_value = gpu.output(key_value.shape(), key_value.dtype())?;
        attention.backward(query, key_value, (out, &sums), gradient, &dquery, &dkey_value)?;
        Ok([Some(dquery.into_tensor()), Some(dkey_value.into_tensor())])
    })
}

/// As [`crate::operations::attend_within`].
pub(crate) fn attend_within(projected: &Tensor, heads: usize) -> Result<Tensor> {
    let projected = dense(projected)?;
    let (batch, tokens, numbers) = projected.dims3()?;
    let width = numbers / 3;
    let places = Places { query_stride: numbers, key_stride: numbers, starts: [width, 2 * width] };
    let attention = Attention::new([batch, heads, width, tokens, tokens], projected.dtype(), places)?;
    let (out, sums) = attention.forward(&projected, &projected)?;
    out.of1("attend", [&projected], move |[projected], out, gradient| {
        let dprojected = Gpu::of(projected)?.output(projected.shape(), projected.dtype())?;
        attention.backward(projected, projected, (out, &sums), gradient, &dprojected, &dprojected)?;
        Ok([Some(dprojected.into_tensor())])
    })
}

impl Attention {
    fn new([batch, heads, width, queries, keys]: [usize; 5], precision: DType, places: Places) -> Result<Self> {
        let head = width / heads.max(1);
        let fits = head * heads == width && places.query_stride >= width && head <= HEAD_MAX;
        if !fits || [batch, head, queries, keys].contains(&0) {
            bail!("no attention of {heads} heads over {batch} samples of {queries} and {keys} tokens, {width} wide");
        }
        Ok(Self { batch, heads, head, queries, keys, precision, places })
    }

    /// The mixed values `[B,T,W]`, and the logarithms of the sums of exponentials `[B,heads,T]`.
    fn forward(&self, query: &Tensor, key_value: &Tensor) -> Result<(Output, Tensor)> {
        let gpu = Gpu::of(query)?;
        let out = gpu.output((self.batch, self.queries, self.heads * self.head), self.precision)?;
        let sums = gpu.output((self.batch, self.heads, self.queries), DType::F32)?;
        let launch = self.kernel(&gpu, "attend")?;
        let launch = self.read(launch, query, key_value)?.output(&out)?.output(&sums)?;
        self.sizes(launch)?.run(self.spread(self.queries))?;
        Ok((out, sums.into_tensor()))
    }

    /// Writes the gradients of queries, keys and values to the places where those were read.
    fn backward(
        &self,
        query: &Tensor,
        key_value: &Tensor,
        (out, sums): (&Tensor, &Tensor),
        gradient: &Tensor,
        dquery: &Output,
        dkey_value: &Output,
    ) -> Result<()> {
        let gpu = Gpu::of(query)?;
        let delta = gpu.output((self.batch, self.heads, self.queries), DType::F32)?;
        gpu.kernel(&ATTENTION, &format!("attend_delta_{}", suffix(self.precision)?))?
            .tensor(out)?
            .tensor(gradient)?
            .output(&delta)?
            .size(self.queries)?
            .size(self.head)?
            .run(Spread::new((self.queries.div_ceil(STAYING), self.heads, self.batch), (STAYING * WARP, 1)))?;
        let delta = delta.into_tensor();

        let launch = self.kernel(&gpu, "attend_queries_backward")?;
        let launch = self.read(launch, query, key_value)?.tensor(gradient)?.tensor(sums)?.tensor(&delta)?;
        self.sizes(launch.output(dquery)?)?.run(self.spread(self.queries))?;

        let [keys, values] = self.places.starts;
        let launch = self.kernel(&gpu, "attend_keys_backward")?;
        let launch = self.read(launch, query, key_value)?.tensor(gradient)?.tensor(sums)?.tensor(&delta)?;
        let launch = launch.output_from(dkey_value, keys)?.output_from(dkey_value, values)?;
        self.sizes(launch)?.run(self.spread(self.keys))
    }

    /// The kernel for this precision and head.
    fn kernel<'a>(&self, gpu: &'a Gpu, name: &str) -> Result<Launch<'a>> {
        let (module, suffix): (&Module, _) = match self.padded() {
            Some(padded) => (&ATTENTION_TENSOR_CORES, format!("bf16_{padded}")),
            None => (&ATTENTION, suffix(self.precision)?.to_owned()),
        };
        gpu.kernel(module, &format!("{name}_{suffix}"))
    }

    /// The length to which heads are padded; none in f32.
    fn padded(&self) -> Option<usize> {
        PADDED.into_iter().find(|padded| self.precision == DType::BF16 && *padded >= self.head)
    }

    fn read<'a>(&self, launch: Launch<'a>, query: &Tensor, key_value: &Tensor) -> Result<Launch<'a>> {
        let [keys, values] = self.places.starts;
        launch.tensor(query)?.tensor_from(key_value, keys)?.tensor_from(key_value, values)
    }

    fn sizes<'a>(&self, launch: Launch<'a>) -> Result<Launch<'a>> {
        let launch = launch.size(self.queries)?.size(self.keys)?.size(self.head)?;
        let launch = launch.size(self.places.query_stride)?.size(self.places.key_stride)?;
        Ok(launch.real((self.head as f32).powf(-0.5)))
    }

    /// A block for some of the `rows` that stay, for each head of each sample.
    fn spread(&self, rows: usize) -> Spread {
        let (staying, threads, shared_numbers) = match self.padded() {
            // As `staying` in the kernels; a warp keeps 16 rows.
            Some(padded) => {
                let staying = if padded > 96 { 32 } else { 64 };
                (staying, staying / 16 * WARP, 0)
            }
            None => (STAYING, STAYING * WARP, 2 * TILE * (self.head + 1) + 2 * STAYING * self.head),
        };
        let blocks = (rows.div_ceil(staying), self.heads, self.batch);
        Spread { blocks, threads: (threads, 1), shared_bytes: shared_numbers * size_of::<f32>() }
    }
}
