//! Memory for time: a sublayer keeps only what it read, and the way back runs it again (Chen et al., 2016, arXiv 1604.06174).
//!
//! The second run computes the same bits as the first, so a step's gradients are the same with it and without.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};

use crate::{
    gradients::TrunkGradients,
    graph::{Output, backward_from},
};

/// `forward` of a sublayer, `x` and its condition, as one node of candle's graph. The gradients of the sublayer's parameters go to `gradients`.
pub(crate) fn recomputed<S: Send + Sync + 'static>(
    gradients: &TrunkGradients,
    sublayer: &Arc<S>,
    forward: fn(&S, &Tensor, &Tensor) -> Result<Tensor>,
    [x, condition]: [&Tensor; 2],
) -> Result<Tensor> {
    if !x.track_op() && !condition.track_op() {
        // candle would not come back to the node.
        return forward(sublayer, x, condition);
    }
    // With its past goes all that the operations in between have kept.
    let out = forward(sublayer, &x.detach(), &condition.detach())?.detach();
    let (gradients, sublayer) = (gradients.clone(), sublayer.clone());
    Output::copy_of(&out)?.of2("recomputed", [x, condition], move |[x, condition], _, gradient| {
        let (x, condition) = (Var::from_tensor(&x.detach())?, Var::from_tensor(&condition.detach())?);
        let mut found = backward_from(&forward(&sublayer, &x, &condition)?, gradient)?;
        let of_read = [found.remove(&x), found.remove(&condition)];
        gradients.put_sublayer(found);
        Ok(of_read)
    })
}
