//! Which words tell a cluster from the rest.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

/// Most different words that are counted at once; beyond, the rarest are forgotten.
const WORDS_MAX: usize = 200_000;
/// Words that a cluster is described with.
const WORDS_A_CLUSTER: usize = 12;
/// Most bytes of a word; what is longer is an address or no word.
const WORD_BYTES_MAX: usize = 32;
/// Words that say nothing about a picture.
const STOP_WORDS: &str = "a an and are as at be been being but by can could did do does for from had has have he her here him his how i if in into is it its \
    me more most my no not of off on or our out over own per she so some such than that the their them then there these they this those through to \
    too under up us very via was we were what when where which while who will with without you your";

/// A word of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// The word, in lower case.
    pub word: String,
    /// Captions of the cluster that have it.
    pub count: u32,
    /// How many times more often it stands in captions of the cluster than in all.
    pub lift: f64,
}

/// Counts in how many captions of each cluster a word stands.
pub(super) struct Words {
    stop: HashSet<&'static str>,
    counts: HashMap<String, Vec<u32>>,
    captions: Vec<u64>,
}

impl Words {
    pub(super) fn new(clusters: usize) -> Self {
        Self { stop: STOP_WORDS.split_whitespace().collect(), counts: HashMap::new(), captions: vec![0; clusters] }
    }

    pub(super) fn add(&mut self, cluster: usize, caption: &str) {
        self.captions[cluster] += 1;
        let caption = caption.to_lowercase();
        let words = caption.split(|letter: char| !letter.is_alphanumeric());
        // One digit may be the number of a class.
        let says = |word: &&str| match word.len() {
            1 => word.bytes().all(|letter| letter.is_ascii_digit()),
            length => (2..=WORD_BYTES_MAX).contains(&length) && !self.stop.contains(word),
        };
        let mut words: Vec<&str> = words.filter(says).collect();
        words.sort_unstable();
        words.dedup();
        for word in words {
            if let Some(counts) = self.counts.get_mut(word) {
                counts[cluster] += 1;
            } else {
                let mut counts = vec![0; self.captions.len()];
                counts[cluster] = 1;
                self.counts.insert(word.to_owned(), counts);
            }
        }
        // A word that comes to matter comes again.
        let mut rare = 1;
        while self.counts.len() > WORDS_MAX {
            self.counts.retain(|_, counts| counts.iter().sum::<u32>() > rare);
            rare += 1;
        }
    }

    /// The words of each cluster: those that are common in it and less so elsewhere, the most telling first.
    pub(super) fn of_clusters(&self) -> Vec<Vec<Word>> {
        let all = self.captions.iter().sum::<u64>() as f64;
        let of_cluster = |cluster: usize| {
            let captions = self.captions[cluster] as f64;
            let words = self.counts.iter().filter(|(_, counts)| counts[cluster] > 0).map(|(word, counts)| {
                let (count, everywhere) = (counts[cluster], counts.iter().map(|count| u64::from(*count)).sum::<u64>());
                let lift = (f64::from(count) / captions) / (everywhere as f64 / all);
                (f64::from(count) * lift.ln(), Word { word: word.clone(), count, lift })
            });
            let mut words: Vec<_> = words.filter(|(telling, _)| *telling > 0.0).collect();
            words.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.word.cmp(&other.word)));
            words.truncate(WORDS_A_CLUSTER);
            words.into_iter().map(|(_, word)| word).collect()
        };
        (0..self.captions.len()).map(of_cluster).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_stand_everywhere_tell_nothing() {
        let mut words = Words::new(2);
        for _ in 0..5 {
            words.add(0, "A photo of the red apple, red!");
            words.add(1, "a photo of a blue ship");
        }
        words.add(1, "a photo of a red ship");
        let found = words.of_clusters();
        let names = |cluster: usize| found[cluster].iter().map(|word| word.word.as_str()).collect::<Vec<_>>();
        assert_eq!((names(0), names(1)), (vec!["apple", "red"], vec!["ship", "blue"]));
        assert_eq!((found[0][0].count, found[0][0].lift), (5, 2.2));
    }

    #[test]
    fn memory_is_bounded_and_what_comes_often_stays() {
        let mut words = Words::new(1);
        for number in 0..WORDS_MAX + 10 {
            words.add(0, &format!("word{number} often"));
            assert!(words.counts.len() <= WORDS_MAX);
        }
        assert_eq!(words.counts["often"][0] as usize, WORDS_MAX + 10);
    }
}
