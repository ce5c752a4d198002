//! From noise to picture: steps along a velocity.

use std::str::FromStr;

use candle_core::{Result, Tensor};

/// How a step is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Solver {
    /// Along the velocity at the step's beginning: one evaluation a step, and an error that halves with the step. As published.
    #[default]
    Euler,
    /// Along the mean of the velocities at the step's beginning and at its end as Euler sees it: two evaluations a step, and an error that halving the step
    /// quarters. The last step is Euler's, since at t = 0 nothing is learnt (Karras et al., arXiv 2206.00364, algorithm 1).
    Heun,
}

impl Solver {
    /// One step of `x` from `t` to `next`, both in 0..1, `next` the smaller. `velocity` gives dx/dt at a point and a time.
    ///
    /// # Errors
    /// Where `velocity` fails.
    pub fn step(
        self,
        x: &Tensor,
        t: f64,
        next: f64,
        velocity: &mut dyn FnMut(&Tensor, f64) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let length = t - next;
        let first = velocity(x, t)?;
        let euler = (x - (&first * length)?)?;
        if self == Self::Euler || next <= 0.0 {
            return Ok(euler);
        }
        let second = velocity(&euler, next)?;
        x - ((first + second)? * (length / 2.0))?
    }
}

impl FromStr for Solver {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "euler" => Ok(Self::Euler),
            "heun" => Ok(Self::Heun),
            _ => Err(format!("there is no solver {name}: euler or heun")),
        }
    }
}

impl std::fmt::Display for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(if *self == Self::Euler { "euler" } else { "heun" })
    }
}
