//! The work list of a fetch: ranges of one blob that several providers take from.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use tokio::sync::Notify;

/// The largest piece, in bytes: what is lost when a provider dies in the middle.
const PIECE_BYTES_MAX: u64 = 4 << 20;
/// The smallest piece: below, asking costs more than sending.
const PIECE_BYTES_MIN: u64 = 64 << 10;
/// Pieces are whole chunk groups (the unit that is verified), in bytes.
const GROUP_BYTES: u64 = 16 << 10;

/// Pieces of one blob that are still to be had.
pub(super) struct Pieces {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    waiting: VecDeque<ChunkRanges>,
    /// Waiting ones and those that somebody is fetching.
    unfinished: usize,
}

impl Pieces {
    /// Cuts a blob of `size` bytes into pieces, enough for `workers` to share, leaving out what is `present`.
    pub(super) fn cut(size: u64, workers: usize, present: &ChunkRanges) -> Self {
        let share = size / workers.max(1) as u64;
        let piece = share.next_multiple_of(GROUP_BYTES).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        let starts = (0..size.div_ceil(piece)).map(|index| index * piece);
        let waiting: VecDeque<ChunkRanges> = starts
            .map(|start| ChunkRanges::bytes(start..size.min(start + piece)) - present.clone())
            .filter(|missing| !missing.is_empty())
            .collect();
        let unfinished = waiting.len();
        Self { state: Mutex::new(State { waiting, unfinished }), changed: Notify::new() }
    }

    /// The next piece to fetch; waits while others hold the last ones, since they may fail. `None`: all is fetched.
    pub(super) async fn take(&self) -> Option<ChunkRanges> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change in between is missed.
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.unfinished == 0 {
                    return None;
                }
                if let Some(piece) = state.waiting.pop_front() {
                    return Some(piece);
                }
            }
            changed.await;
        }
    }

    /// A piece has arrived.
    pub(super) fn finish(&self) {
        self.state().unfinished -= 1;
        self.changed.notify_waiters();
    }

    /// A piece has to be fetched by somebody else.
    pub(super) fn give_back(&self, piece: ChunkRanges) {
        self.state().waiting.push_front(piece);
        self.changed.notify_waiters();
    }

    /// True once every piece has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.state().unfinished == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_byte_is_in_exactly_one_piece() {
        for size in [1, GROUP_BYTES, 1 << 20, (9 << 20) + 17] {
            let pieces = Pieces::cut(size, 4, &ChunkRanges::empty());
            let mut union = ChunkRanges::empty();
            while let Some(piece) = pieces.take().await {
                assert!(!piece.intersects(&union));
                union |= piece;
                pieces.finish();
            }
            assert_eq!(union, ChunkRanges::bytes(0..size));
        }
    }

    #[tokio::test]
    async fn what_is_present_is_not_fetched_again() {
        let size = 8 << 20;
        let present = ChunkRanges::bytes(0..size / 2);
        let pieces = Pieces::cut(size, 2, &present);
        while let Some(piece) = pieces.take().await {
            assert!(!piece.intersects(&present));
            pieces.finish();
        }
        assert!(Pieces::cut(size, 2, &ChunkRanges::all()).is_done());
    }

    #[tokio::test]
    async fn a_piece_given_back_goes_to_whoever_waits() {
        let pieces = Pieces::cut(1, 1, &ChunkRanges::empty());
        let piece = pieces.take().await.unwrap();
        let waiting = pieces.take();
        let failing = async { pieces.give_back(piece.clone()) };
        let (taken, ()) = tokio::join!(waiting, failing);
        assert_eq!(taken, Some(piece));
        pieces.finish();
        assert_eq!(pieces.take().await, None);
    }
}
