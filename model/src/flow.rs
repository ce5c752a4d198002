//! Flow matching: the straight path from a picture to noise, and its velocity (paper, section on the objective).

use candle_core::{Result, Tensor};

/// The scale on which the models read the time.
pub const TIME_SCALE: f64 = 1000.0;

/// Points on a path to noise, one a sample, and what an expert should say of them.
pub struct Noised {
    /// Where they are, `[B,C,S,S]`: on the straight path x_t = (1 - t) x_0 + t eps.
    pub x: Tensor,
    /// The times as the models read them, `[B]`: on the straight path 1000 t.
    pub time: Tensor,
    /// What an expert should answer, `[B,C,S,S]`: on the straight path v = eps - x_0.
    pub target: Tensor,
}

/// Moves clean `x0` `[B,C,S,S]` along the straight path to `noise` by `times`, one a sample, in 0..1.
pub fn noised(x0: &Tensor, noise: &Tensor, times: &[f32]) -> Result<Noised> {
    let t = Tensor::new(times, x0.device())?;
    let velocity = (noise - x0)?;
    let share = t.reshape((times.len(), 1, 1, 1))?;
    let x = (x0 + velocity.broadcast_mul(&share)?)?;
    Ok(Noised { x, time: (t * TIME_SCALE)?, target: velocity })
}
