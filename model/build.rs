//! Compiles the CUDA kernels to PTX, with the helper that candle's own kernels are built with. Does nothing without the feature `cuda`.

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const KERNELS: &str = "src/cuda/kernels";
    let headers = ["numbers.cuh", "rows.cuh", "tensor_cores.cuh"].map(|name| format!("{KERNELS}/{name}"));
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("ptx.rs");
    cudaforge::KernelBuilder::new()
        .source_dir(KERNELS)
        .watch(headers)
        .arg("-std=c++17")
        .arg("-O3")
        .build_ptx()?
        .write(out)?;
    println!("cargo:rerun-if-changed=build.rs");
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
