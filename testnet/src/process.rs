//! Nodes as processes, each with its own data directory.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use paris_node::{api::Client, status::Status, store::DataDir};

/// The first argument that makes this package's program a node.
pub const NODE: &str = "node";
/// Between two looks at a condition that is waited for.
const POLL: Duration = Duration::from_millis(100);

/// A node on this machine. Dropping it kills the process.
pub struct NodeProcess {
    name: String,
    program: PathBuf,
    dir: DataDir,
    child: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

impl NodeProcess {
    /// A node that does not run yet. `program` is this package's binary; the data directory is `root/name`.
    pub fn new(program: &Path, root: &Path, name: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = DataDir::new(root.join(name));
        Ok(Self { name: name.to_owned(), program: program.to_owned(), dir, child: None, runtime })
    }

    /// What the testnet calls the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    pub fn dir(&self) -> &DataDir {
        &self.dir
    }

    /// True between [`NodeProcess::run`] and its end.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(&self.program);
        // Many nodes share the machine: each part trains on one thread, not on all cores.
        command.env("RAYON_NUM_THREADS", "1").arg(NODE).arg("--data-dir").arg(self.dir.root()).args(arguments);
        command
    }

    /// Runs a command of the node to its end.
    pub fn call<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> anyhow::Result<Output> {
        Ok(self.command(arguments).stdin(Stdio::null()).output()?)
    }

    /// Runs a command of the node to its end, which must be a good one, and returns what it printed.
    pub fn answer<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> anyhow::Result<String> {
        let output = self.call(arguments)?;
        if !output.status.success() {
            bail!("{} failed: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts the node on loopback; its log goes to `DATA_DIR.log`.
    pub fn run(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let log_path = self.log_path();
        fs::create_dir_all(self.dir.root())?;
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = self.command(["--log", "info", "run", "--host", "127.0.0.1", "--port", "0"]);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.program.display()))?);
        Ok(())
    }

    /// Where the node's log is.
    pub fn log_path(&self) -> PathBuf {
        self.dir.root().with_extension("log")
    }

    /// Kills the process with SIGKILL, as a power cut would.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks the process to stop, as Ctrl-C would, and waits for its end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The running node's status; none while it cannot answer.
    pub fn status(&self) -> Option<Status> {
        let client = Client::of(&self.dir)?;
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), client.status()).await.ok()?.ok() })
    }

    /// Waits until the node's status satisfies `condition`; an error names `what` and shows the last status.
    pub fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        mut condition: impl FnMut(&Status) -> bool,
    ) -> anyhow::Result<Status> {
        let until = Instant::now() + patience;
        let mut last = None;
        while Instant::now() < until {
            if let Some(status) = self.status() {
                if condition(&status) {
                    return Ok(status);
                }
                last = Some(status);
            }
            if self.child.is_some() && !self.is_running() {
                let log = fs::read_to_string(self.log_path()).unwrap_or_default();
                bail!("{} ended while waiting until {what}:\n{log}", self.name);
            }
            std::thread::sleep(POLL);
        }
        let seen = last.map_or("it never answered".to_owned(), |status| format!("its last status:\n{status}"));
        bail!("{}: not within {patience:?}: {what}; {seen}", self.name)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // A process that is gone already is no matter.
        let _ = self.kill();
    }
}
