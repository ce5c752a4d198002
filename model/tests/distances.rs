//! Distances of feature sets against numpy and scipy (`twin/distances.py`).

use candle_core::{DType, Device, Tensor};
use paris_model::evaluation::{
    frechet::{Moments, PrincipalComponents},
    kernel::kernel_distance,
};

struct Pair {
    a: Tensor,
    b: Tensor,
    frechet: f64,
    kernel: f64,
}

fn pair(name: &str) -> Pair {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/twin/distances.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let tensor = |of: &str| tensors[&format!("{name}.{of}")].to_dtype(DType::F64).unwrap();
    let number = |of: &str| tensor(of).to_vec1::<f64>().unwrap()[0];
    Pair { a: tensor("a"), b: tensor("b"), frechet: number("frechet"), kernel: number("kernel") }
}

fn assert_equal(what: &str, found: f64, expected: f64) {
    let error = (found - expected).abs() / expected.abs();
    println!("{what}: {found} for {expected}, relative error {error:.1e}");
    assert!(error < 1e-6, "{what}: {found} for {expected}");
}

#[test]
fn distances_are_those_of_numpy_and_scipy() {
    let Pair { a, b, frechet, kernel } = pair("plain");
    assert_equal("frechet", Moments::of(&a).unwrap().distance(&Moments::of(&b).unwrap()).unwrap(), frechet);
    assert_equal("kernel", kernel_distance(&a, &b).unwrap(), kernel);
}

#[test]
fn distances_in_principal_components_are_those_of_numpy_and_scipy() {
    let Pair { a, b, frechet, kernel } = pair("few");
    assert!(Moments::of(&a).is_err(), "80 rows have no covariance of 100 features");
    let components = PrincipalComponents::of(&a).unwrap();
    let [a_moments, b_moments] = [&a, &b].map(|set| Moments::of(&components.project(set).unwrap()).unwrap());
    assert_equal("frechet in components", a_moments.distance(&b_moments).unwrap(), frechet);
    assert_equal("kernel", kernel_distance(&a, &b).unwrap(), kernel);
}
