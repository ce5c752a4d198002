//! A value a part, found without a search: registers and leases are looked up for every part at every heartbeat.

use crate::part::Part;

/// A map from parts, in the order of parts.
#[derive(Clone, Debug)]
pub(crate) struct PartMap<T> {
    /// By number of the cluster. As long as the greatest number given, which the manifest bounds.
    experts: Vec<Option<T>>,
    router: Option<T>,
}

impl<T> Default for PartMap<T> {
    fn default() -> Self {
        Self { experts: Vec::new(), router: None }
    }
}

impl<T> PartMap<T> {
    /// The value of a part.
    pub(crate) fn get(&self, part: Part) -> Option<&T> {
        match part {
            Part::Expert(cluster) => self.experts.get(usize::from(cluster))?.as_ref(),
            Part::Router => self.router.as_ref(),
        }
    }

    /// The value of a part, to change.
    pub(crate) fn get_mut(&mut self, part: Part) -> Option<&mut T> {
        match part {
            Part::Expert(cluster) => self.experts.get_mut(usize::from(cluster))?.as_mut(),
            Part::Router => self.router.as_mut(),
        }
    }

    fn slot(&mut self, part: Part) -> &mut Option<T> {
        match part {
            Part::Expert(cluster) => {
                let at = usize::from(cluster);
                if at >= self.experts.len() {
                    self.experts.resize_with(at + 1, || None);
                }
                &mut self.experts[at]
            }
            Part::Router => &mut self.router,
        }
    }

    /// Sets the value of a part.
    pub(crate) fn insert(&mut self, part: Part, value: T) {
        *self.slot(part) = Some(value);
    }

    /// The value of a part, made if there is none.
    pub(crate) fn get_or_default(&mut self, part: Part) -> &mut T
    where
        T: Default,
    {
        self.slot(part).get_or_insert_default()
    }

    /// All values with their parts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Part, &T)> + Clone {
        let experts = (0..).map(Part::Expert).zip(&self.experts);
        experts.chain([(Part::Router, &self.router)]).filter_map(|(part, value)| Some((part, value.as_ref()?)))
    }

    /// All values, to change.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.experts.iter_mut().chain([&mut self.router]).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_values_and_their_order() {
        let mut map = PartMap::default();
        map.insert(Part::Router, 'r');
        map.insert(Part::Expert(3), 'd');
        map.insert(Part::Expert(1), 'b');
        *map.get_or_default(Part::Expert(1)) = 'B';
        assert_eq!(
            (map.get(Part::Expert(0)), map.get(Part::Expert(1)), map.get(Part::Expert(9))),
            (None, Some(&'B'), None)
        );
        let all: Vec<_> = map.iter().collect();
        assert_eq!(all, [(Part::Expert(1), &'B'), (Part::Expert(3), &'d'), (Part::Router, &'r')]);
        map.values_mut().for_each(|value| value.make_ascii_uppercase());
        assert_eq!((map.get(Part::Router), map.get(Part::Expert(3))), (Some(&'R'), Some(&'D')));
    }
}
