//! An ordered map whose clones share what they have in common.
//!
//! Snapshots and plans are handed to readers while the next one is made. Both differ in few entries, so a
//! clone must cost nothing and a change only the entries near it: a B+ tree whose nodes are behind [`Arc`]s.
//! A change copies the nodes on the way to its entry that a clone still holds, and writes the others in place.

mod iter;
mod wire;

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

pub use iter::Iter;
use iter::Step;

/// Entries of a leaf and children of an inner node, at most. Few, since a change copies a leaf.
const WIDTH: usize = 16;
/// Children with fewer are merged with a neighbour where both fit in one node.
const SPARSE: usize = WIDTH / 4;

/// An ordered map; clone O(1), look up, insert and remove O(log n).
pub struct OrderedMap<K, V> {
    root: Arc<Node<K, V>>,
    len: usize,
}

/// A subtree, ordered by key.
#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// Each child with its lowest key (or a lower one that was removed). Never empty.
    Inner(Vec<(K, Arc<Self>)>),
}

// === impl Node ===

impl<K: Ord + Clone, V: Clone> Node<K, V> {
    fn width(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }

    /// Puts an entry in; returns the value it replaces, and the upper half where the node had to be split.
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<(K, Arc<Self>)>) {
        match self {
            Self::Leaf(entries) => {
                let at = match entries.binary_search_by(|(have, _)| have.cmp(&key)) {
                    Ok(at) => {
                        let old = entries.get_mut(at).map(|entry| std::mem::replace(&mut entry.1, value));
                        return (old, None);
                    }
                    Err(at) => at,
                };
                entries.insert(at, (key, value));
                let upper = split(entries, at);
                (None, upper.and_then(|upper| Some((upper.first()?.0.clone(), Arc::new(Self::Leaf(upper))))))
            }
            Self::Inner(children) => {
                let at = child_of(children, &key);
                let Some((_, child)) = children.get_mut(at) else { return (None, None) };
                let (replaced, upper) = Arc::make_mut(child).insert(key, value);
                children.splice(at + 1..at + 1, upper);
                let upper = split(children, at + 1);
                let upper =
                    upper.and_then(|upper| Some((upper.first()?.0.clone(), Arc::new(Self::Inner(upper)))));
                (replaced, upper)
            }
        }
    }

    fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Leaf(entries) => {
                let at = entries.binary_search_by(|(have, _)| have.borrow().cmp(key)).ok()?;
                Some(entries.remove(at).1)
            }
            Self::Inner(children) => {
                let at = child_of(children, key);
                let child = Arc::make_mut(&mut children.get_mut(at)?.1);
                let removed = child.remove(key)?;
                if child.width() < SPARSE {
                    merge(children, at);
                }
                Some(removed)
            }
        }
    }

    fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        match self {
            Self::Leaf(entries) => {
                let at = entries.binary_search_by(|(have, _)| have.borrow().cmp(key)).ok()?;
                entries.get_mut(at).map(|(_, value)| value)
            }
            Self::Inner(children) => {
                let at = child_of(children, key);
                Arc::make_mut(&mut children.get_mut(at)?.1).get_mut(key)
            }
        }
    }

    fn collect_mut<'a>(&'a mut self, into: &mut Vec<(&'a K, &'a mut V)>) {
        match self {
            Self::Leaf(entries) => into.extend(entries.iter_mut().map(|(key, value)| (&*key, value))),
            Self::Inner(children) => {
                for (_, child) in children {
                    Arc::make_mut(child).collect_mut(into);
                }
            }
        }
    }
}

/// The child that has `key` if any has.
fn child_of<K: Ord + Borrow<Q>, V, Q: Ord + ?Sized>(children: &[(K, V)], key: &Q) -> usize {
    children.partition_point(|(first, _)| first.borrow() <= key).saturating_sub(1)
}

/// Takes the upper part of what is too long: half of it, or only the last where that is what came last, so
/// that keys that arrive in order fill their nodes. Neither part keeps room that it will not need.
fn split<T>(items: &mut Vec<T>, at: usize) -> Option<Vec<T>> {
    (items.len() > WIDTH).then(|| {
        let upper = items.split_off(if at + 1 == items.len() { at } else { items.len() / 2 });
        items.shrink_to(WIDTH);
        upper
    })
}

/// Joins a sparse child with a neighbour, or drops it when it is empty.
fn merge<K: Ord + Clone, V: Clone>(children: &mut Vec<(K, Arc<Node<K, V>>)>, at: usize) {
    let width =
        |children: &[(K, Arc<Node<K, V>>)], at: usize| children.get(at).map(|(_, child)| child.width());
    if width(children, at) == Some(0) {
        // Where it was the only one, the node above is dropped in turn, or the root starts anew.
        children.remove(at);
        return;
    }
    let left = if at > 0 { at - 1 } else { at };
    let (Some(first), Some(second)) = (width(children, left), width(children, left + 1)) else { return };
    if first + second > WIDTH / 2 {
        return;
    }
    let (_, right) = children.remove(left + 1);
    let Some((_, child)) = children.get_mut(left) else { return };
    match (Arc::make_mut(child), Arc::unwrap_or_clone(right)) {
        (Node::Leaf(entries), Node::Leaf(more)) => entries.extend(more),
        (Node::Inner(grandchildren), Node::Inner(more)) => grandchildren.extend(more),
        // All leaves are at one depth.
        (Node::Leaf(_), Node::Inner(_)) | (Node::Inner(_), Node::Leaf(_)) => {}
    }
}

// === impl OrderedMap ===

impl<K, V> OrderedMap<K, V> {
    /// A map without entries.
    pub fn new() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }

    /// Number of entries.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True without entries.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All entries, ascending.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter::new(vec![Step::of(&self.root)], self.len)
    }

    /// All keys, ascending.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by ascending key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q> + Ord,
    {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(have, _)| have.borrow().cmp(key)).ok()?;
                    return entries.get(at).map(|(_, value)| value);
                }
                Node::Inner(children) => node = &children.get(child_of(children, key))?.1,
            }
        }
    }

    /// True when there is an entry with the key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q> + Ord,
    {
        self.get(key).is_some()
    }

    /// True when both are one and the same in memory; false says nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }
}

impl<K: Ord + Clone, V: Clone> OrderedMap<K, V> {
    /// Sets the value of a key; returns the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let (replaced, upper) = Arc::make_mut(&mut self.root).insert(key, value);
        if let Some(upper) = upper {
            let lower = std::mem::replace(&mut self.root, Arc::new(Node::Leaf(Vec::new())));
            self.root = match first_key(&lower) {
                Some(first) => Arc::new(Node::Inner(vec![(first.clone(), lower), upper])),
                // A split leaves something in both halves.
                None => upper.1,
            };
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    /// Removes a key; returns its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        // Nothing is copied for what is not there.
        self.get(key)?;
        let removed = Arc::make_mut(&mut self.root).remove(key)?;
        self.len -= 1;
        while let Node::Inner(children) = &*self.root
            && let [] | [_] = children.as_slice()
        {
            let only = children.first().map(|(_, only)| Arc::clone(only));
            self.root = only.unwrap_or_else(|| Arc::new(Node::Leaf(Vec::new())));
        }
        Some(removed)
    }

    /// The value of a key, to be changed in place.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.get(key)?;
        Arc::make_mut(&mut self.root).get_mut(key)
    }

    /// All values, to be changed in place, by ascending key. Copies all that is shared.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        let mut all = Vec::with_capacity(self.len);
        Arc::make_mut(&mut self.root).collect_mut(&mut all);
        all.into_iter().map(|(_, value)| value)
    }

    /// Keeps the entries that `keep` accepts.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let gone: Vec<K> =
            self.iter().filter(|(key, value)| !keep(key, value)).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.remove(&key);
        }
    }

    /// The entries from `key` on, ascending.
    pub fn range_from<'a, Q: Ord + ?Sized>(&'a self, key: &Q) -> Iter<'a, K, V>
    where
        K: Borrow<Q>,
    {
        let mut path = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.partition_point(|(have, _)| have.borrow() < key);
                    path.push(Step::Leaf(entries.get(at..).unwrap_or_default().iter()));
                    return Iter::new(path, 0);
                }
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    path.push(Step::Inner(children.get(at + 1..).unwrap_or_default().iter()));
                    match children.get(at) {
                        Some((_, child)) => node = child,
                        None => return Iter::new(path, 0),
                    }
                }
            }
        }
    }
}

fn first_key<K, V>(mut node: &Node<K, V>) -> Option<&K> {
    loop {
        match node {
            Node::Leaf(entries) => return entries.first().map(|(key, _)| key),
            Node::Inner(children) => node = &children.first()?.1,
        }
    }
}

impl<K, V> Clone for OrderedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K, V> Default for OrderedMap<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for OrderedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.is_same(other) || (self.len == other.len && self.iter().eq(other.iter()))
    }
}

impl<K: Eq, V: Eq> Eq for OrderedMap<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for OrderedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<'a, K, V> IntoIterator for &'a OrderedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for OrderedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for OrderedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::new();
        map.extend(entries);
        map
    }
}

impl<K, V, Q: Ord + ?Sized> std::ops::Index<&Q> for OrderedMap<K, V>
where
    K: Borrow<Q> + Ord,
{
    type Output = V;

    /// # Panics
    /// When there is no such entry, as with the maps of the standard library.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("an entry with the key")
    }
}

#[cfg(test)]
mod tests;
