//! What is remembered of a compiled plan, so that a change of few Services costs little.

use std::collections::{BTreeMap, BTreeSet};

use netd_dataplane::Refusal;
use netd_model::{
    FamilyPlan, Frontend, FrontendAddress, FrontendKey, LocalPods, NodePortAddresses, ObjectName, OrderedMap,
};

use super::{Chains, Compiler, Entry, Part, Settings, skeleton};
use crate::ruleset::ChainKey;

/// A compiled plan without its chains' rules.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    parts: BTreeMap<ObjectName, Part>,
    entries: BTreeMap<FrontendKey, Entry>,
    /// Sums over the parts.
    sums: Sums,
    /// The plan's; shared with it, so that a plan whose frontends are the same is told at once.
    frontends: OrderedMap<FrontendKey, Frontend>,
    /// What all parts depend on.
    settings: Settings,
    local_pods: LocalPods,
    node_port_addresses: NodePortAddresses,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    endpoints: usize,
    refused: usize,
    borrowing: usize,
}

impl Sums {
    const fn of(part: &Part) -> Self {
        Self { endpoints: part.endpoints, refused: part.refused.len(), borrowing: part.borrows as usize }
    }
}

/// What turns a program's chains into those of a later plan.
#[derive(Debug)]
pub(crate) struct Patch {
    /// Chains as they must be; those not named here stay.
    pub(crate) wanted: Chains,
    /// Chains of the program that this replaces.
    pub(crate) old: BTreeSet<ChainKey>,
    parts: BTreeMap<ObjectName, Part>,
    removed: Vec<ObjectName>,
    frontends: OrderedMap<FrontendKey, Frontend>,
}

impl Program {
    pub(super) fn new(plan: &FamilyPlan, settings: Settings) -> Self {
        Self {
            parts: BTreeMap::new(),
            entries: BTreeMap::new(),
            sums: Sums::default(),
            frontends: plan.frontends.clone(),
            settings,
            local_pods: plan.local_pods.clone(),
            node_port_addresses: plan.node_port_addresses.clone(),
        }
    }

    pub(super) const fn entries(&self) -> &BTreeMap<FrontendKey, Entry> {
        &self.entries
    }

    pub(super) fn insert(&mut self, service: ObjectName, part: Part) {
        let Sums { endpoints, refused, borrowing } = Sums::of(&part);
        self.sums.endpoints += endpoints;
        self.sums.refused += refused;
        self.sums.borrowing += borrowing;
        self.entries.extend(part.entries.iter().map(|(key, entry)| (*key, entry.clone())));
        self.parts.insert(service, part);
    }

    fn remove(&mut self, service: &ObjectName) {
        let Some(part) = self.parts.remove(service) else { return };
        let Sums { endpoints, refused, borrowing } = Sums::of(&part);
        self.sums.endpoints -= endpoints;
        self.sums.refused -= refused;
        self.sums.borrowing -= borrowing;
        for key in part.entries.keys() {
            self.entries.remove(key);
        }
    }

    /// Frontends programmed.
    pub(crate) fn frontends(&self) -> usize {
        self.entries.len()
    }

    /// Endpoints programmed, counted once a pool.
    pub(crate) const fn endpoints(&self) -> usize {
        self.sums.endpoints
    }

    /// What cannot be rendered.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &Refusal> {
        let parts = (self.sums.refused > 0).then_some(&self.parts);
        parts.into_iter().flat_map(BTreeMap::values).flat_map(|part| &part.refused)
    }

    /// Compiles those Services only. `None` when more than them may differ, so that all must be compiled.
    ///
    /// The work is that of the Services where only pools changed; where any frontend did, O(n) in frontends and in
    /// the rules that list them.
    pub(crate) fn patch(
        &self,
        plan: &FamilyPlan,
        settings: Settings,
        services: &BTreeSet<ObjectName>,
    ) -> Option<Patch> {
        let is_same_ground = self.settings == settings
            && self.local_pods == plan.local_pods
            && self.node_port_addresses == plan.node_port_addresses;
        if !is_same_ground || self.sums.borrowing > 0 {
            return None;
        }
        let affected = self.affected(plan, services);
        let mut patch = Patch {
            wanted: Chains::new(),
            old: BTreeSet::new(),
            parts: BTreeMap::new(),
            removed: services.iter().filter(|name| !affected.contains_key(name)).cloned().collect(),
            frontends: plan.frontends.clone(),
        };
        for (service, frontends) in affected {
            let (part, chains) = Compiler::new(plan, settings).service(&frontends);
            if part.borrows {
                return None;
            }
            patch.wanted.extend(chains);
            patch.parts.insert(service.clone(), part);
        }
        let old: Vec<&Part> = services.iter().filter_map(|name| self.parts.get(name)).collect();
        patch.old.extend(old.iter().flat_map(|part| part.chains.iter().cloned()));
        self.patch_lists(plan, &old, patch)
    }

    /// The frontends of those Services.
    fn affected<'p>(
        &'p self,
        plan: &'p FamilyPlan,
        services: &BTreeSet<ObjectName>,
    ) -> BTreeMap<&'p ObjectName, Vec<(&'p FrontendKey, &'p Frontend)>> {
        let mut affected: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut add = |key: &'p FrontendKey, frontend: &'p Frontend| {
            affected.entry(&frontend.port.service).or_default().push((key, frontend));
        };
        if plan.frontends.is_same(&self.frontends) {
            let parts = services.iter().filter_map(|name| self.parts.get(name));
            for key in parts.flat_map(|part| &part.frontends) {
                plan.frontends.get(key).into_iter().for_each(|frontend| add(key, frontend));
            }
        } else {
            let found =
                plan.frontends.iter().filter(|(_, frontend)| services.contains(&frontend.port.service));
            found.for_each(|(key, frontend)| add(key, frontend));
        }
        affected
    }

    /// Adds the chains that list frontends, where they change.
    fn patch_lists(&self, plan: &FamilyPlan, old: &[&Part], mut patch: Patch) -> Option<Patch> {
        let before: BTreeMap<_, _> = old.iter().flat_map(|part| &part.entries).collect();
        let after: BTreeMap<_, _> = patch.parts.values().flat_map(|part| &part.entries).collect();
        if before == after {
            return Some(patch);
        }
        let node_ports = |entries: &BTreeMap<&FrontendKey, &Entry>| -> BTreeSet<FrontendKey> {
            entries.keys().map(|key| **key).filter(|key| key.address == FrontendAddress::NodePort).collect()
        };
        // A Service that is not compiled may hold the destination, or shadow the node port.
        let is_contested =
            after.keys().any(|key| !before.contains_key(key) && self.entries.contains_key(key));
        if is_contested || node_ports(&before) != node_ports(&after) {
            return None;
        }
        let mut entries = self.entries.clone();
        for key in before.keys() {
            entries.remove(key);
        }
        entries.extend(after.iter().map(|(key, entry)| (**key, (*entry).clone())));
        let lists = skeleton::lists(plan, &entries);
        patch.old.extend(lists.keys().cloned());
        patch.wanted.extend(lists);
        Some(patch)
    }

    /// Takes a patch over once the kernel has it.
    pub(crate) fn adopt(&mut self, patch: Patch) {
        self.frontends = patch.frontends;
        for service in patch.removed.iter().chain(patch.parts.keys()) {
            self.remove(service);
        }
        for (service, part) in patch.parts {
            self.insert(service, part);
        }
    }
}

#[cfg(test)]
mod tests;
