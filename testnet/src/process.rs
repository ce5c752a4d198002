//! Nodes as processes, each with its own data directory, and on Linux in a network namespace of its own if one is wanted.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use paris_node::{api::Client, status::Status, store::DataDir};

/// The first argument that makes this package's program a node.
pub const NODE: &str = "node";
/// The pictures that come with the project.
pub const BUNDLED_PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../data/emoji32-512.tar");
/// Between two looks at a condition that is waited for.
const POLL: Duration = Duration::from_millis(100);

/// A node on this machine. Dropping it kills the process.
pub struct NodeProcess {
    name: String,
    program: PathBuf,
    dir: DataDir,
    child: Option<Child>,
    host: String,
    /// The network namespace that it lives in; the test's own if none.
    namespace: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl NodeProcess {
    /// A node that does not run yet. `program` is this package's binary; the data directory is `root/name`.
    pub fn new(program: &Path, root: &Path, name: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = DataDir::new(root.join(name));
        let (name, program, host) = (name.to_owned(), program.to_owned(), "127.0.0.1".to_owned());
        Ok(Self { name, program, dir, child: None, host, namespace: None, runtime })
    }

    /// The same node in another network namespace, listening there. Its commands run there too.
    pub fn in_namespace(mut self, namespace: &str, host: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self.host = host.to_owned();
        self
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
        let mut command = match &self.namespace {
            None => Command::new(&self.program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.program);
                command
            }
        };
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

    /// Starts the node, on loopback unless it has a namespace of its own; its log goes to `DATA_DIR.log`.
    pub fn run(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let log_path = self.log_path();
        fs::create_dir_all(self.dir.root())?;
        let log = File::options().create(true).append(true).open(&log_path)?;
        let mut command = self.command(["--log", "info", "run", "--host", &self.host, "--port", "0"]);
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

    /// Asks the process to stop, as a service manager would, and waits for its end.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal("TERM")?;
        self.end().map(drop)
    }

    /// Sends the process a signal: `INT` is Ctrl-C, `STOP` suspends it, `CONT` lets it go on.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let id = self.id().with_context(|| format!("{} does not run", self.name))?;
        let sent = Command::new("kill").args([&format!("-{signal}"), &id.to_string()]).status()?;
        ensure!(sent.success(), "{} was not to be reached with SIG{signal}", self.name);
        Ok(())
    }

    /// The process's id, while it runs or has just ended.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Waits for the process's end.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().with_context(|| format!("{} does not run", self.name))?;
        Ok(child.wait()?)
    }

    /// What the node's log says so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The running node's status; none while it cannot answer.
    pub fn status(&self) -> Option<Status> {
        let client = Client::of(&self.dir)?;
        if self.namespace.is_some() {
            // Its local API listens where this process cannot reach it.
            let said = self.call(["status", "--json"]).ok().filter(|said| said.status.success())?;
            return serde_json::from_slice(&said.stdout).ok().filter(|status: &Status| status.running);
        }
        self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), client.status()).await.ok()?.ok() })
    }

    /// Lets the running node keep the weights of every part from now on, as one that samples does.
    pub fn mirror(&self) -> anyhow::Result<()> {
        let client = Client::of(&self.dir).with_context(|| format!("{} does not run", self.name))?;
        self.runtime.block_on(client.assembly())?;
        Ok(())
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
                bail!("{} ended while waiting until {what}:\n{}", self.name, self.log());
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
