//! How far an experiment is, and how long it still takes.

use std::time::{Duration, Instant};

/// Between two lines.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Counts work, in samples that an expert could have been trained on meanwhile.
pub(super) struct Clock {
    started: Instant,
    said: Instant,
    all: f64,
    done: f64,
    /// Of `done`, what was there before this process began.
    found: f64,
}

impl Clock {
    /// A clock for so much work.
    pub(super) fn new(all: f64) -> Self {
        let now = Instant::now();
        Self { started: now, said: now - SAY_EVERY, all, done: 0.0, found: 0.0 }
    }

    /// Work that was done now.
    pub(super) fn done(&mut self, work: f64) {
        self.done += work;
    }

    /// Work that an earlier process has done.
    pub(super) fn found(&mut self, work: f64) {
        self.done += work;
        self.found += work;
    }

    /// Says what is going on, now and then.
    pub(super) fn say(&mut self, what: impl FnOnce() -> String) {
        if self.said.elapsed() >= SAY_EVERY {
            self.say_now(&what());
        }
    }

    /// Says it in any case.
    pub(super) fn say_now(&mut self, what: &str) {
        self.said = Instant::now();
        println!("[{}] {what}", self.place());
    }

    fn place(&self) -> String {
        let passed = self.started.elapsed().as_secs_f64();
        let worked = self.done - self.found;
        let left = match worked > 0.0 {
            true => format!("{:.1} min left", passed / worked * (self.all - self.done).max(0.0) / 60.0),
            false => "? min left".to_owned(),
        };
        format!("{:.1} min, {left}", passed / 60.0)
    }
}
