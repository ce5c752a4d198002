//! How far two sets of pictures lie apart: the Fréchet distance of the normal distributions that fit their features best (Heusel et al., arXiv
//! 1706.08500, section 3; Dowson and Landau, 1982).

use candle_core::{DType, Device, Result, Tensor};

use super::symmetric::Eigen;

/// Principal components that distances are taken in where there are too few pictures for all features.
pub const COMPONENTS: usize = 64;

/// Mean and covariance of a set's features, f64.
pub struct Moments {
    rows: usize,
    /// `[1, width]`.
    mean: Tensor,
    /// `[width, width]`.
    covariance: Tensor,
}

impl Moments {
    /// The moments of features `[n, width]`; the covariance is the unbiased one, over n - 1.
    ///
    /// # Errors
    /// With fewer rows than make a covariance of full rank, width + 1: the distance would measure the missing rows. Take principal components
    /// ([`PrincipalComponents`]), or the kernel distance.
    pub fn of(features: &Tensor) -> Result<Self> {
        let (rows, width) = features.dims2()?;
        if rows <= width {
            candle_core::bail!(
                "a Fréchet distance over {width} features takes at least {} pictures, not {rows}: with fewer the covariance is singular and the number \
                 means nothing. Draw more pictures, take principal components, or the kernel distance",
                width + 1
            );
        }
        Self::unchecked(features)
    }

    fn unchecked(features: &Tensor) -> Result<Self> {
        let rows = features.dim(0)?;
        let features = features.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let mean = features.mean_keepdim(0)?;
        let centred = features.broadcast_sub(&mean)?;
        let covariance = (centred.t()?.matmul(&centred)? / (rows.max(2) - 1) as f64)?;
        Ok(Self { rows, mean, covariance })
    }

    /// The squared Fréchet distance: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). 0 for equal moments, larger the more they differ. It is biased: a
    /// smaller set lies farther from everything, so only numbers of equal counts compare.
    ///
    /// With the Inception features of Heusel et al. this is the published FID; with any other, name the features beside the number.
    ///
    /// # Errors
    /// If the widths differ.
    pub fn distance(&self, other: &Self) -> Result<f64> {
        let ((_, width), (_, others)) = (self.mean.dims2()?, other.mean.dims2()?);
        if width != others {
            candle_core::bail!("a Fréchet distance of {width} features and {others}");
        }
        // The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), which has real ones.
        let root = square_root(&self.covariance)?;
        let product = root.matmul(&other.covariance)?.matmul(&root)?;
        let values = Eigen::of(numbers(&((&product + product.t()?)? / 2.0)?)?, width, false).values;
        let of_product: f64 = values.iter().map(|value| value.max(0.0).sqrt()).sum();
        let apart = (&self.mean - &other.mean)?.sqr()?.sum_all()?.to_scalar::<f64>()?;
        Ok(apart + trace(&self.covariance)? + trace(&other.covariance)? - 2.0 * of_product)
    }

    /// Pictures that the moments are of.
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// The root of a matrix that is symmetric and has no eigenvalue below 0 but by rounding.
fn square_root(matrix: &Tensor) -> Result<Tensor> {
    let width = matrix.dim(0)?;
    let Eigen { values, vectors } = Eigen::of(numbers(matrix)?, width, true);
    let vectors = Tensor::from_vec(vectors, (width, width), &Device::Cpu)?;
    let roots: Vec<f64> = values.iter().map(|value| value.max(0.0).sqrt()).collect();
    let scaled = vectors.broadcast_mul(&Tensor::from_vec(roots, (width, 1), &Device::Cpu)?)?;
    vectors.t()?.matmul(&scaled)
}

fn numbers(matrix: &Tensor) -> Result<Vec<f64>> {
    matrix.flatten_all()?.to_vec1()
}

fn trace(matrix: &Tensor) -> Result<f64> {
    Ok(numbers(matrix)?.iter().step_by(matrix.dim(0)? + 1).sum())
}

/// The directions in which a set of features varies most: [`COMPONENTS`] numbers that small sets have a covariance of.
pub struct PrincipalComponents {
    mean: Tensor,
    /// `[width, components]`.
    directions: Tensor,
}

impl PrincipalComponents {
    /// The components of `reference` `[n, width]`, most varying first; fewer than [`COMPONENTS`] where the width is less.
    ///
    /// # Errors
    /// If the reference has no more rows than there are components to find.
    pub fn of(reference: &Tensor) -> Result<Self> {
        let (rows, width) = reference.dims2()?;
        let components = COMPONENTS.min(width);
        if rows <= components {
            candle_core::bail!("{components} principal components take more than {components} pictures, not {rows}");
        }
        let moments = Moments::unchecked(reference)?;
        let Eigen { values, vectors } = Eigen::of(numbers(&moments.covariance)?, width, true);
        let mut order: Vec<usize> = (0..width).collect();
        order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
        let rows: Vec<f64> =
            order[..components].iter().flat_map(|row| &vectors[row * width..][..width]).copied().collect();
        let directions = Tensor::from_vec(rows, (components, width), &Device::Cpu)?.t()?.contiguous()?;
        Ok(Self { mean: moments.mean, directions })
    }

    /// Features `[n, width]` in these directions, `[n, components]`, f64.
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        let features = features.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        features.broadcast_sub(&self.mean)?.matmul(&self.directions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// Normal rows of deviation `scale` about `centre`.
    fn cloud(rows: usize, width: usize, centre: f64, scale: f64, seed: u64) -> Tensor {
        let normals = Stream::seeded(seed, "cloud").normal_tensor((rows, width), &Device::Cpu).unwrap();
        normals.affine(scale, centre).unwrap()
    }

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        Moments::of(a).unwrap().distance(&Moments::of(b).unwrap()).unwrap()
    }

    #[test]
    fn normal_clouds_are_as_far_apart_as_the_formula_says() {
        let (width, rows) = (4, 20_000);
        let (a, b) = (cloud(rows, width, 0.0, 1.0, 1), cloud(rows, width, 0.5, 2.0, 2));
        // (0.5^2 + (2 - 1)^2) a feature.
        let expected = width as f64 * 1.25;
        assert!((distance(&a, &b) - expected).abs() < 0.03 * expected, "{}", distance(&a, &b));
        assert!((distance(&a, &b) - distance(&b, &a)).abs() < 1e-9);
        assert!(distance(&a, &a).abs() < 1e-9);
    }

    #[test]
    fn too_few_pictures_are_refused_and_components_take_them() {
        let (a, b) = (cloud(100, 150, 0.0, 1.0, 1), cloud(100, 150, 0.2, 1.0, 2));
        let said = Moments::of(&a).err().unwrap().to_string();
        assert!(said.contains("151 pictures") && said.contains("100"), "{said}");
        let components = PrincipalComponents::of(&a).unwrap();
        let (a, b) = (components.project(&a).unwrap(), components.project(&b).unwrap());
        assert_eq!(a.dims(), [100, COMPONENTS]);
        assert!(distance(&a, &b).is_finite());
        assert!(PrincipalComponents::of(&b.narrow(0, 0, COMPONENTS).unwrap()).is_err());
    }

    #[test]
    fn the_first_component_is_the_direction_of_most_variance() {
        let wide = cloud(500, 1, 0.0, 5.0, 1);
        let narrow = cloud(500, 2, 0.0, 0.1, 2);
        let features = Tensor::cat(&[narrow, wide.clone()], 1).unwrap();
        let projected = PrincipalComponents::of(&features).unwrap().project(&features).unwrap();
        let variance =
            |column: usize| projected.narrow(1, column, 1).unwrap().var(0).unwrap().to_vec1::<f64>().unwrap()[0];
        assert!((variance(0) / 25.0 - 1.0).abs() < 0.2 && variance(1) < 0.1, "{} {}", variance(0), variance(1));
    }
}
