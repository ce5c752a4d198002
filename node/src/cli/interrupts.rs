//! Ctrl-C, and what a service manager sends to stop a program.

use std::io;

use futures::future::select_all;
#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlC as Signal, ctrl_c};

/// Requests to stop. One that comes while nobody waits for it is kept: from [`Interrupts::listen`] on the system itself ends the program no more.
pub(super) struct Interrupts(Vec<Signal>);

impl Interrupts {
    /// Hears every request from now on.
    pub(super) fn listen() -> io::Result<Self> {
        #[cfg(unix)]
        let signals = vec![signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        #[cfg(windows)]
        let signals = vec![ctrl_c()?];
        Ok(Self(signals))
    }

    /// Waits for the next request.
    pub(super) async fn next(&mut self) {
        select_all(self.0.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_comes_while_nobody_waits_is_heard_later() {
        let mut interrupts = Interrupts::listen().unwrap();
        for signal in ["-INT", "-TERM"] {
            // Waited for once in vain, as while the node starts.
            tokio::select! {
                biased;
                () = interrupts.next() => panic!("nobody asked to stop"),
                () = std::future::ready(()) => {}
            }
            let myself = std::process::id().to_string();
            assert!(std::process::Command::new("kill").args([signal, &myself]).status().unwrap().success());
            interrupts.next().await;
        }
    }
}
