//! What processes have used of the machine so far, as Linux tells.

use std::{collections::BTreeMap, fs};

use anyhow::Context;

/// Clock ticks a second in which Linux reports a process's CPU time.
const TICKS_A_SECOND: f64 = 100.0;

/// CPU time of a process so far, of threads that ended too, seconds.
pub(crate) fn cpu_of_process(process: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("{path}: this measurement needs Linux"))?;
    // The name, in brackets, may hold anything; user and system time are the twelfth and thirteenth field after it.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks = fields.map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_A_SECOND)
}

/// Name and CPU time so far, seconds, of each thread of a process.
pub(crate) fn cpu_of_threads(process: u32) -> anyhow::Result<BTreeMap<u32, (String, f64)>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{process}/task")).context("this measurement needs Linux")? {
        let path = entry?.path();
        let read = |file: &str| fs::read_to_string(path.join(file)).ok();
        let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // A thread that ends meanwhile has said its last.
        let (Some(id), Some(name), Some(times)) = (id, read("comm"), read("schedstat")) else { continue };
        let nanoseconds: f64 = times.split_whitespace().next().unwrap_or_default().parse()?;
        threads.insert(id, (name.trim().to_owned(), nanoseconds / 1e9));
    }
    Ok(threads)
}

/// The most memory that this process ever had, megabytes; 0 where the system does not say.
pub(crate) fn peak_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kilobytes| kilobytes / 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_busy_threads_time_is_its_own_and_the_processs() {
        let me = std::process::id();
        let before = cpu_of_process(me).unwrap();
        let busy = move || {
            let mine = || cpu_of_threads(me).unwrap().into_values().find(|(name, _)| name == "busy").unwrap().1;
            while mine() < 0.2 {}
            mine()
        };
        let cpu = thread::Builder::new().name("busy".into()).spawn(busy).unwrap().join().unwrap();
        // Counted in hundredths of a second.
        assert!(cpu_of_process(me).unwrap() - before >= cpu - 0.02);
    }
}
