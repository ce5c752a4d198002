//! Experts that do not fit into memory together: loaded when first used, put back when room is needed.

use std::{cell::RefCell, rc::Rc};

use candle_core::{Result, Tensor};

use super::Field;

/// Experts within a budget of memory. An expert is loaded when it is first used; the one that was not used for longest makes room for it.
///
/// One expert is always held, whatever the budget: without it nothing could be drawn.
pub struct Shelf {
    sizes: Vec<Option<u64>>,
    budget_bytes: u64,
    load: Box<Load>,
    held: RefCell<Held>,
}

/// Loads the expert of a cluster.
type Load = dyn Fn(usize) -> Result<Box<dyn Field>>;

#[derive(Default)]
struct Held {
    /// In the order of their last use.
    experts: Vec<(usize, Rc<dyn Field>)>,
    used: ShelfUse,
}

/// What was carried to and from a shelf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShelfUse {
    /// How often an expert was loaded.
    pub loads: usize,
    /// How often one made room for another.
    pub evictions: usize,
    /// The most bytes of parameters held at once.
    pub most_bytes: u64,
}

impl Shelf {
    /// A shelf that holds experts of these sizes in memory (bytes; none for an expert that is absent) up to a budget of bytes together.
    pub fn new(
        sizes: Vec<Option<u64>>,
        budget_bytes: u64,
        load: impl Fn(usize) -> Result<Box<dyn Field>> + 'static,
    ) -> Rc<Self> {
        Rc::new(Self { sizes, budget_bytes, load: Box::new(load), held: RefCell::default() })
    }

    /// The experts by cluster, as a [`Mixture`](super::Mixture) takes them.
    pub fn experts(self: &Rc<Self>) -> Vec<Option<Box<dyn Field>>> {
        let on_shelf = |cluster: usize| Box::new(OnShelf { shelf: self.clone(), cluster }) as Box<dyn Field>;
        self.sizes.iter().enumerate().map(|(cluster, size)| size.map(|_| on_shelf(cluster))).collect()
    }

    /// What was carried so far.
    pub fn used(&self) -> ShelfUse {
        self.held.borrow().used
    }

    fn expert(&self, cluster: usize) -> Result<Rc<dyn Field>> {
        let held = &mut *self.held.borrow_mut();
        if let Some(place) = held.experts.iter().position(|(it, _)| *it == cluster) {
            let expert = held.experts.remove(place);
            held.experts.push(expert);
        } else {
            let size = |cluster: usize| self.sizes[cluster].unwrap_or(0);
            // Room is made first, so that the budget holds while the expert is read.
            let bytes = |held: &Held| held.experts.iter().map(|(it, _)| size(*it)).sum::<u64>() + size(cluster);
            while bytes(held) > self.budget_bytes && !held.experts.is_empty() {
                held.experts.remove(0);
                held.used.evictions += 1;
            }
            held.used.loads += 1;
            held.used.most_bytes = held.used.most_bytes.max(bytes(held));
            held.experts.push((cluster, (self.load)(cluster)?.into()));
        }
        Ok(held.experts[held.experts.len() - 1].1.clone())
    }
}

/// The expert of a cluster, wherever it is.
struct OnShelf {
    shelf: Rc<Shelf>,
    cluster: usize,
}

impl Field for OnShelf {
    fn velocity(&self, x: &Tensor, t: &Tensor, text: &Tensor) -> Result<Tensor> {
        self.shelf.expert(self.cluster)?.velocity(x, t, text)
    }

    fn is_at_hand(&self) -> bool {
        self.shelf.held.borrow().experts.iter().any(|(it, _)| *it == self.cluster)
    }
}
