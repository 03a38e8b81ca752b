//! The difference between what is installed and what is wanted.

use std::collections::BTreeMap;

/// Additions, changes and removals that turn one keyed set into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta<K, V> {
    /// Keys to write: new, or with another value than installed.
    pub set: BTreeMap<K, V>,
    /// Keys to remove.
    pub remove: Vec<K>,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Delta<K, V> {
    /// What turns `installed` into `wanted`, each in ascending order. O(n + m).
    pub fn between<'a>(
        installed: impl IntoIterator<Item = (&'a K, &'a V)>,
        wanted: impl IntoIterator<Item = (&'a K, &'a V)>,
    ) -> Self
    where
        K: 'a,
        V: 'a,
    {
        let mut delta = Self { set: BTreeMap::new(), remove: Vec::new() };
        let mut installed = installed.into_iter().peekable();
        for (key, value) in wanted {
            while let Some((gone, _)) = installed.next_if(|(have, _)| *have < key) {
                delta.remove.push(gone.clone());
            }
            match installed.next_if(|(have, _)| *have == key) {
                Some((_, have)) if have == value => {}
                Some(_) | None => {
                    delta.set.insert(key.clone(), value.clone());
                }
            }
        }
        delta.remove.extend(installed.map(|(gone, _)| gone.clone()));
        delta
    }

    /// True when nothing differs.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Number of keys that differ.
    pub fn len(&self) -> usize {
        self.set.len() + self.remove.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applying_a_delta_gives_the_wanted_map() {
        let installed = BTreeMap::from([(1, 'a'), (2, 'b'), (3, 'c')]);
        let wanted = BTreeMap::from([(2, 'b'), (3, 'x'), (4, 'd')]);
        let delta = Delta::between(&installed, &wanted);
        assert_eq!(delta.len(), 3);
        let mut result = installed;
        for key in &delta.remove {
            result.remove(key);
        }
        result.extend(delta.set);
        assert_eq!(result, wanted);
    }

    #[test]
    fn equal_maps_give_an_empty_delta() {
        let map = BTreeMap::from([(1, 'a')]);
        assert!(Delta::between(&map, &map).is_empty());
    }
}
