//! How far two sets of pictures lie apart: the kernel distance (Binkowski et al., arXiv 1801.01401).

use candle_core::{DType, Device, Result, Tensor};

/// Rows that are compared at once; bounds the memory of a kernel block.
const ROWS: usize = 1024;

/// A set of features, with what of the distance concerns it alone.
pub struct KernelSet {
    features: Tensor,
    within: f64,
}

impl KernelSet {
    /// The set of features `[n, width]`, n at least 2. Computed in f64 on the CPU.
    pub fn of(features: &Tensor) -> Result<Self> {
        let (rows, width) = features.dims2()?;
        if rows < 2 || width == 0 {
            candle_core::bail!("kernel distance of features {:?}: two rows a set are needed", features.dims());
        }
        let features = features.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        // A row's likeness to itself says nothing; leaving it out is what makes the estimate unbiased.
        let own = cube(&features.sqr()?.sum(1)?, width)?;
        let within = (kernel_sum(&features, &features, width)? - own) / (rows * (rows - 1)) as f64;
        Ok(Self { features, within })
    }

    /// The unbiased squared maximum mean discrepancy under the kernel `(x . y / width + 1)^3`. About 0 for sets of one distribution (it may fall
    /// below 0), larger the more they differ.
    ///
    /// With Inception features this is the published KID; with any other, name the features beside the number. Unlike FID it
    /// needs no covariance, so a few hundred pictures suffice.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        let ((n, width), (m, others)) = (self.features.dims2()?, other.features.dims2()?);
        if width != others {
            candle_core::bail!("kernel distance of {width} features and {others}: equal widths are needed");
        }
        let between = kernel_sum(&self.features, &other.features, width)? / (n * m) as f64;
        Ok(self.within + other.within - 2.0 * between)
    }
}

/// The [`KernelSet::distance`] of two sets of features, `[n, width]` and `[m, width]`.
pub fn kernel_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    KernelSet::of(a)?.distance(&KernelSet::of(b)?)
}

/// The kernel summed over all pairs of rows.
fn kernel_sum(a: &Tensor, b: &Tensor, width: usize) -> Result<f64> {
    let mut sum = 0.0;
    for i in (0..a.dim(0)?).step_by(ROWS) {
        let rows = a.narrow(0, i, ROWS.min(a.dim(0)? - i))?;
        for j in (0..b.dim(0)?).step_by(ROWS) {
            let columns = b.narrow(0, j, ROWS.min(b.dim(0)? - j))?;
            sum += cube(&rows.matmul(&columns.t()?)?, width)?;
        }
    }
    Ok(sum)
}

/// Sum of `(product / width + 1)^3`.
fn cube(products: &Tensor, width: usize) -> Result<f64> {
    let base = products.affine(1.0 / width as f64, 1.0)?;
    (base.sqr()? * base)?.sum_all()?.to_scalar()
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::{RngCore, SeedableRng};

    use super::*;

    /// Rows whose values lie uniformly in `centre` - 1..`centre` + 1.
    fn cloud(rows: usize, centre: f64, seed: u64) -> Tensor {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<f64> =
            (0..rows * 8).map(|_| centre + f64::from(random.next_u32()) / 2f64.powi(31) - 1.0).collect();
        Tensor::from_vec(values, (rows, 8), &Device::Cpu).unwrap()
    }

    #[test]
    fn one_distribution_is_near_zero_and_two_are_apart() {
        let same = kernel_distance(&cloud(400, 0.0, 1), &cloud(300, 0.0, 2)).unwrap();
        let near = kernel_distance(&cloud(400, 0.0, 1), &cloud(300, 0.3, 2)).unwrap();
        let far = kernel_distance(&cloud(400, 0.0, 1), &cloud(300, 0.6, 2)).unwrap();
        assert!(same.abs() < 0.01, "{same}");
        assert!(near > 10.0 * same.abs() && far > 2.0 * near, "{same} {near} {far}");
    }

    #[test]
    fn it_is_unbiased_and_symmetric() {
        let draws = 200;
        let mean =
            (0..draws).map(|i| kernel_distance(&cloud(5, 0.0, 2 * i), &cloud(7, 0.0, 2 * i + 1)).unwrap()).sum::<f64>()
                / draws as f64;
        assert!(mean.abs() < 0.02, "{mean}");
        let (a, b) = (cloud(20, 0.0, 1), cloud(30, 1.0, 2));
        assert!((kernel_distance(&a, &b).unwrap() - kernel_distance(&b, &a).unwrap()).abs() < 1e-9);
    }

    #[test]
    fn blocks_add_up_to_the_direct_sum() {
        let (a, b) = (cloud(ROWS + 3, 0.0, 1), cloud(5, 0.2, 2));
        let direct = cube(&a.matmul(&b.t().unwrap()).unwrap(), 8).unwrap();
        assert!((kernel_sum(&a, &b, 8).unwrap() - direct).abs() < 1e-6 * direct);
    }

    #[test]
    fn sets_that_can_not_be_compared_are_refused() {
        let one = Tensor::zeros((1, 8), DType::F64, &Device::Cpu).unwrap();
        assert!(kernel_distance(&one, &cloud(5, 0.0, 1)).is_err());
        let narrow = Tensor::zeros((5, 4), DType::F64, &Device::Cpu).unwrap();
        assert!(kernel_distance(&narrow, &cloud(5, 0.0, 1)).is_err());
    }
}
