//! The work list of a fetch: ranges of one blob that several providers take from.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt};
use paris_protocol::identity::NodeId;
use tokio::sync::Notify;
use tokio::time::Instant;

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
    /// What is under way for longer is slow.
    slow: Duration,
}

struct State {
    waiting: VecDeque<Piece>,
    under_way: Vec<UnderWay>,
}

/// A piece to fetch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Which of the blob's it is.
    number: usize,
    /// What of the blob it is.
    pub(super) ranges: ChunkRanges,
}

/// A piece that somebody is fetching.
struct UnderWay {
    piece: Piece,
    fetchers: Vec<NodeId>,
    /// When the last of them took it.
    since: Instant,
}

impl Pieces {
    /// Cuts a blob of `size` bytes into pieces, enough for `workers` to share, leaving out what is `present`.
    pub(super) fn cut(size: u64, workers: usize, present: &ChunkRanges, slow: Duration) -> Self {
        let share = size / workers.max(1) as u64;
        let piece = share.next_multiple_of(GROUP_BYTES).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        let starts = (0..size.div_ceil(piece)).map(|index| index * piece);
        let waiting = starts
            .map(|start| ChunkRanges::bytes(start..size.min(start + piece)) - present.clone())
            .filter(|missing| !missing.is_empty())
            .enumerate()
            .map(|(number, ranges)| Piece { number, ranges })
            .collect();
        Self { state: Mutex::new(State { waiting, under_way: Vec::new() }), changed: Notify::new(), slow }
    }

    /// The next piece for a provider to fetch. While others hold the last ones it waits, since they may fail, and takes what they are slow with.
    /// `None`: all is fetched.
    pub(super) async fn take(&self, provider: NodeId) -> Option<Piece> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change in between is missed.
            changed.as_mut().enable();
            let next_slow = {
                let mut state = self.state();
                if state.is_done() {
                    return None;
                }
                if let Some(piece) = state.waiting.pop_front() {
                    let (fetchers, since) = (vec![provider], Instant::now());
                    state.under_way.push(UnderWay { piece: piece.clone(), fetchers, since });
                    return Some(piece);
                }
                let of_others = state.under_way.iter_mut().filter(|it| !it.fetchers.contains(&provider));
                let oldest = of_others.min_by_key(|it| it.since);
                match oldest {
                    Some(oldest) if oldest.since.elapsed() >= self.slow => {
                        oldest.fetchers.push(provider);
                        oldest.since = Instant::now();
                        return Some(oldest.piece.clone());
                    }
                    oldest => oldest.map(|it| it.since + self.slow),
                }
            };
            match next_slow {
                Some(at) => drop(tokio::time::timeout_at(at, changed).await),
                None => changed.await,
            }
        }
    }

    /// A piece is here.
    pub(super) fn finish(&self, piece: &Piece) {
        self.state().under_way.retain(|it| it.piece.number != piece.number);
        self.changed.notify_waiters();
    }

    /// A provider fetches a piece no more.
    pub(super) fn give_back(&self, piece: &Piece, provider: NodeId) {
        let mut state = self.state();
        if let Some(place) = state.under_way.iter().position(|it| it.piece.number == piece.number) {
            state.under_way[place].fetchers.retain(|fetcher| *fetcher != provider);
            if state.under_way[place].fetchers.is_empty() {
                let UnderWay { piece, .. } = state.under_way.swap_remove(place);
                state.waiting.push_front(piece);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until a piece that was taken has arrived, whoever fetched it.
    pub(super) async fn arrived(&self, piece: &Piece) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state().under_way.iter().all(|it| it.piece.number != piece.number) {
                return;
            }
            changed.await;
        }
    }

    /// True once every piece has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.state().is_done()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(10);
    const ONE: NodeId = NodeId([1; 32]);
    const OTHER: NodeId = NodeId([2; 32]);
    const THIRD: NodeId = NodeId([3; 32]);

    #[tokio::test]
    async fn every_byte_is_in_exactly_one_piece() {
        for size in [1, GROUP_BYTES, 1 << 20, (9 << 20) + 17] {
            let pieces = Pieces::cut(size, 4, &ChunkRanges::empty(), SLOW);
            let mut union = ChunkRanges::empty();
            while let Some(piece) = pieces.take(ONE).await {
                assert!(!piece.ranges.intersects(&union));
                union |= piece.ranges.clone();
                pieces.finish(&piece);
            }
            assert_eq!(union, ChunkRanges::bytes(0..size));
        }
    }

    #[tokio::test]
    async fn what_is_present_is_not_fetched_again() {
        let size = 8 << 20;
        let present = ChunkRanges::bytes(0..size / 2);
        let pieces = Pieces::cut(size, 2, &present, SLOW);
        while let Some(piece) = pieces.take(ONE).await {
            assert!(!piece.ranges.intersects(&present));
            pieces.finish(&piece);
        }
        assert!(Pieces::cut(size, 2, &ChunkRanges::all(), SLOW).is_done());
    }

    #[tokio::test]
    async fn a_piece_given_back_goes_to_whoever_waits() {
        let pieces = Pieces::cut(1, 1, &ChunkRanges::empty(), SLOW);
        let piece = pieces.take(ONE).await.unwrap();
        let waiting = pieces.take(OTHER);
        let failing = async { pieces.give_back(&piece, ONE) };
        let (taken, ()) = tokio::join!(waiting, failing);
        assert_eq!(taken, Some(piece.clone()));
        pieces.finish(&piece);
        assert_eq!(pieces.take(ONE).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_is_slow_with_is_taken_by_others_one_after_the_other() {
        let pieces = Pieces::cut(1, 1, &ChunkRanges::empty(), SLOW);
        let began = Instant::now();
        let piece = pieces.take(ONE).await.unwrap();
        for (helper, wait) in [(OTHER, SLOW), (THIRD, 2 * SLOW)] {
            assert_eq!(pieces.take(helper).await, Some(piece.clone()));
            assert!((wait..wait + SLOW).contains(&began.elapsed()));
        }
        // Who failed is not the last to fetch it, so nobody else need begin.
        pieces.give_back(&piece, OTHER);
        assert!(!pieces.is_done());
        let arrival = async { pieces.finish(&piece) };
        let (taken, (), ()) = tokio::join!(pieces.take(OTHER), pieces.arrived(&piece), arrival);
        assert_eq!(taken, None);
        assert!(pieces.is_done());
    }
}
