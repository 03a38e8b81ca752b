//! What is asked of netd on the cluster: each scenario is one test.
//!
//! Every scenario brings the objects it needs to the state it needs, so that any of them can be run alone.

use anyhow::Result;

use crate::cluster::Cluster;

mod faults;
mod reach;
mod remains;
mod rollout;
mod web;

/// One test.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The law it checks.
    pub name: &'static str,
    /// Checks it.
    pub check: fn(&Cluster) -> Result<()>,
}

/// All scenarios, in the order they are run: the last one takes netd away.
pub const ALL: [Scenario; 11] = [
    Scenario { name: "pods_get_addresses_of_their_node_and_reach_each_other", check: reach::pods },
    Scenario { name: "service_name_reaches_every_endpoint_on_both_nodes", check: reach::service_by_name },
    Scenario { name: "cluster_names_resolve_as_the_dns_specification_says", check: reach::names },
    Scenario { name: "name_of_a_service_made_again_is_right_at_once", check: reach::name_made_again },
    Scenario { name: "node_port_answers_outside_the_cluster_on_every_node", check: reach::node_port },
    Scenario { name: "rolling_update_under_load_fails_no_connection", check: rollout::rolling_update },
    Scenario { name: "service_scaled_to_zero_refuses_and_comes_back", check: rollout::zero_and_back },
    Scenario { name: "api_server_restart_stops_no_traffic_and_changes_follow", check: faults::api_server },
    Scenario { name: "netd_killed_and_restarted_under_load_fails_no_connection", check: faults::netd_killed },
    Scenario { name: "deleted_pods_and_services_leave_nothing_on_a_node", check: remains::nothing },
    Scenario { name: "without_netd_services_fail", check: faults::without_netd },
];
