//! The essentials of a history: what `status` shows of a part that is or was trained here.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use super::{Event, EventName, Line, Steps, now_s};

/// How a part's training went on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The last interval.
    pub steps: Option<Steps>,
    /// The last event.
    pub event: Option<Event>,
    /// The last failure.
    pub failure: Option<Event>,
}

impl Summary {
    /// The essentials of some lines, oldest first.
    pub fn of(lines: impl IntoIterator<Item = Line>) -> Self {
        let mut summary = Self::default();
        lines.into_iter().for_each(|line| summary.note(line));
        summary
    }

    /// Takes in the next line.
    pub fn note(&mut self, line: Line) {
        match line {
            Line::Steps(steps) => self.steps = Some(steps),
            Line::Event(event) => {
                if event.is_failure() {
                    self.failure = Some(event.clone());
                }
                self.event = Some(event);
            }
        }
    }

    /// True for a part that was never trained here.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// True if training here goes on, as far as the history says.
    fn goes_on(&self) -> bool {
        !matches!(self.event, Some(Event { event: EventName::Failed | EventName::Ended, .. }))
    }
}

impl Display for Summary {
    /// One line, and one more where something failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.steps {
            Some(it) => {
                write!(
                    f,
                    "step {}, {:.1} samples/s, gradient norm {:.3}",
                    it.step, it.samples_per_s, it.gradient_norm
                )?;
                match (&it.snapshot_problem, it.snapshot_step) {
                    (Some(problem), _) => write!(f, "; NO SNAPSHOT: {problem}")?,
                    (None, Some(step)) => write!(f, "; snapshot of step {step}")?,
                    (None, None) => {}
                }
                let share = |seconds: f64| 100.0 * seconds / it.seconds.max(1e-9);
                let shares = it.split.named().into_iter().filter(|(_, seconds)| share(*seconds) >= 0.5);
                let shares: Vec<_> = shares.map(|(name, seconds)| format!("{name} {:.0} %", share(seconds))).collect();
                write!(f, "; time: {}", shares.join(", "))?;
            }
            None => write!(f, "no step yet")?,
        }
        if !self.goes_on()
            && let Some(event) = &self.event
        {
            write!(f, "; ended at step {}", event.step)?;
        }
        if let Some(failure) = &self.failure {
            let minutes = now_s().saturating_sub(failure.time_s) / 60;
            write!(f, "\n    failed {minutes} min ago at step {}: {}", failure.step, failure.message)?;
        }
        Ok(())
    }
}
