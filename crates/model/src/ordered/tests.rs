use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn same(map: &OrderedMap<u16, u32>, reference: &BTreeMap<u16, u32>) {
    assert_eq!(map.len(), reference.len());
    assert!(map.iter().eq(reference.iter()), "{map:?}\n{reference:?}");
}

/// The greatest depth, and whether every leaf has it and no node is too wide or (but the root) empty.
fn depth(node: &Node<u16, u32>, is_root: bool) -> usize {
    assert!(node.width() <= WIDTH && (is_root || node.width() > 0), "{}", node.width());
    match node {
        Node::Leaf(_) => 1,
        Node::Inner(children) => {
            let depths: Vec<usize> = children.iter().map(|(_, child)| depth(child, false)).collect();
            assert!(depths.windows(2).all(|pair| pair[0] == pair[1]), "{depths:?}");
            depths[0] + 1
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_is_an_ordered_map_and_its_clones_do_not_change(
        changes in proptest::collection::vec((0u16..400, proptest::option::weighted(0.6, any::<u32>())), 0..2000),
        from in 0u16..400,
    ) {
        let mut map = OrderedMap::new();
        let mut reference = BTreeMap::new();
        let mut earlier = Vec::new();
        for (i, (key, value)) in changes.into_iter().enumerate() {
            match value {
                Some(value) => prop_assert_eq!(map.insert(key, value), reference.insert(key, value)),
                None => prop_assert_eq!(map.remove(&key), reference.remove(&key)),
            }
            prop_assert_eq!(map.get(&key), reference.get(&key));
            if i % 97 == 0 {
                earlier.push((map.clone(), reference.clone()));
            }
        }
        depth(&map.root, true);
        same(&map, &reference);
        prop_assert!(map.range_from(&from).eq(reference.range(from..)));
        for (map, reference) in &earlier {
            same(map, reference);
        }
        map.retain(|key, _| key % 3 == 0);
        reference.retain(|key, _| key % 3 == 0);
        same(&map, &reference);
        for value in map.values_mut() {
            *value = value.wrapping_add(1);
        }
        for value in reference.values_mut() {
            *value = value.wrapping_add(1);
        }
        same(&map, &reference);
    }
}

#[test]
fn a_map_that_is_emptied_is_like_a_new_one() {
    let mut map: OrderedMap<u16, u32> = (0..1000).map(|key| (key, 1)).collect();
    assert!(depth(&map.root, true) > 2);
    for key in (0..1000).rev() {
        map.remove(&key);
    }
    assert_eq!((map.len(), depth(&map.root, true)), (0, 1));
    assert_eq!(map, OrderedMap::new());
    assert_eq!(map.get_mut(&1), None);
}

#[test]
fn a_change_copies_only_the_way_to_it() {
    let map: OrderedMap<u16, Arc<u32>> = (0..10_000).map(|key| (key, Arc::new(1))).collect();
    let mut changed = map.clone();
    changed.insert(5_000, Arc::new(2));
    let copied = map.values().filter(|value| Arc::strong_count(value) > 1).count();
    assert!(copied <= WIDTH, "{copied} values are in two leaves");
    assert_eq!((*map[&5_000], *changed[&5_000]), (1, 2));
}
