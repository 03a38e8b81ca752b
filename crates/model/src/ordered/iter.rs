//! Walking a map from low to high.

use std::sync::Arc;

use super::Node;

/// Entries in ascending order.
pub struct Iter<'a, K, V> {
    path: Vec<Step<'a, K, V>>,
    left: usize,
}

/// The rest of a node on the way to the next entry.
pub(super) enum Step<'a, K, V> {
    Leaf(std::slice::Iter<'a, (K, V)>),
    Inner(std::slice::Iter<'a, (K, Arc<Node<K, V>>)>),
}

impl<'a, K, V> Iter<'a, K, V> {
    /// The entries that are left on a path, the deepest step first; at least `left`.
    pub(super) const fn new(path: Vec<Step<'a, K, V>>, left: usize) -> Self {
        Self { path, left }
    }
}

impl<'a, K, V> Step<'a, K, V> {
    pub(super) fn of(node: &'a Node<K, V>) -> Self {
        match node {
            Node::Leaf(entries) => Self::Leaf(entries.iter()),
            Node::Inner(children) => Self::Inner(children.iter()),
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let down = match self.path.last_mut()? {
                Step::Leaf(entries) => match entries.next() {
                    Some((key, value)) => {
                        self.left = self.left.saturating_sub(1);
                        return Some((key, value));
                    }
                    None => None,
                },
                Step::Inner(children) => children.next().map(|(_, child)| Step::of(child)),
            };
            match down {
                Some(step) => self.path.push(step),
                None => {
                    self.path.pop();
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, None)
    }
}
