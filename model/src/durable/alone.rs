//! Training without a network: step after step, with snapshots.

use std::{
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Durable, DurableError, Outcome};
use crate::{
    batch::BatchSource,
    prefetch::Prefetch,
    trainer::{TrainError, Trainer},
};

impl Durable {
    /// Trains until `watch` breaks off, and writes a snapshot every so often. `watch` is asked before every step; it sees the trainer, and what became
    /// of the step before. It is asked again where a step turns out to have failed only then.
    ///
    /// # Errors
    /// If training fails for good, or `watch` does.
    pub fn train_alone<E: From<DurableError>>(
        &mut self,
        data: &Arc<dyn BatchSource + Send + Sync>,
        snapshot_every: Duration,
        mut watch: impl FnMut(&Trainer, Option<&Outcome>) -> Result<ControlFlow<()>, E>,
    ) -> Result<(), E> {
        let fail = |error: TrainError| E::from(DurableError::from(error));
        let draw = |durable: &Self| {
            let trainer = &durable.trainer;
            Prefetch::start(trainer.draw_rule().clone(), data.clone(), trainer.cursor())
                .map_err(|error| fail(error.into()))
        };
        let (mut draws, mut snapped, mut outcome) = (draw(self)?, Instant::now(), None);
        loop {
            let is_over = watch(&self.trainer, outcome.as_ref())?.is_break();
            if snapped.elapsed() >= snapshot_every {
                self.snapshot().map_err(fail)?;
                snapped = Instant::now();
            }
            outcome = match is_over {
                false => Some(self.step_from(&mut draws)?),
                true => self.check()?.map(Outcome::WentBack),
            };
            match outcome {
                Some(Outcome::Stepped(_)) => {}
                Some(Outcome::WentBack(_)) => draws = draw(self)?,
                None => break,
            }
        }
        self.settle();
        Ok(())
    }
}
