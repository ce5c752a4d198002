//! Flow matching: the straight path from a picture to noise, and its velocity (paper, section on the objective).

use candle_core::{Result, Tensor};

/// The scale on which the models read the time.
pub const TIME_SCALE: f64 = 1000.0;

/// A point on the path and what a model should say of it.
pub struct Noised {
    /// x_t = (1 - t) x_0 + t eps.
    pub x: Tensor,
    /// The time as the models read it, 1000 t.
    pub time: Tensor,
    /// v = eps - x_0.
    pub velocity: Tensor,
}

/// Moves clean `x0` `[B,C,S,S]` along the path to `noise` by `t` `[B]` in 0..1.
pub fn noised(x0: &Tensor, noise: &Tensor, t: &Tensor) -> Result<Noised> {
    let velocity = (noise - x0)?;
    let share = t.reshape((t.elem_count(), 1, 1, 1))?;
    let x = (x0 + velocity.broadcast_mul(&share)?)?;
    Ok(Noised { x, time: (t * TIME_SCALE)?, velocity })
}
