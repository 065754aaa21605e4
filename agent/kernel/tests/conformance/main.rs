//! One suite, two kernels: what holds for Linux must hold for the fake. The real one runs in namespaces of its own,
//! needs no root, and is looked at with iproute2.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "all of this file tree is test code, which clippy sees in test functions only"
)]

mod cases;
mod elements;
mod firewall;
mod guard;
mod held;
mod iptables;
mod keys;
mod namespaces;
mod notices;
mod refusals;
mod rules;
mod scale;
mod tunnels;
mod witness;
mod world;

use world::{World, in_namespace};

/// Runs each `case` against the fake and against Linux, as `fake::NAME` and `linux::NAME`.
macro_rules! conformance {
    ($($module:ident::$case:ident),* $(,)?) => {
        mod fake {
            $(#[test] fn $case() {
                super::World::fake().run(|world| Box::pin(crate::$module::$case(world)));
            })*
        }
        mod linux {
            $(#[test] fn $case() {
                super::in_namespace(concat!("linux::", stringify!($case)), || {
                    super::World::linux().run(|world| Box::pin(crate::$module::$case(world)));
                });
            })*
        }
    };
}

conformance! {
    cases::a_vxlan_device_is_as_asked_for_each_underlay,
    cases::a_bridge_is_as_asked,
    cases::a_bridge_keeps_its_mtu_whatever_is_plugged_into_it,
    cases::a_bridge_that_is_made_anew_gets_back_what_was_plugged_into_it,
    cases::peers_are_reached_by_nexthop_objects_over_ipv4,
    cases::peers_are_reached_onlink_over_ipv6,
    cases::a_route_moves_from_one_device_to_another,
    cases::unknown_addresses_are_unreachable,
    cases::mtu_mac_and_local_change_in_place,
    cases::a_new_vni_makes_the_device_anew,
    cases::a_route_changes_between_object_hop_and_unreachable,
    cases::a_peer_that_moves_is_changed_in_place,
    cases::what_is_deleted_is_absent_and_deleting_it_again_succeeds,
    cases::a_nexthop_takes_its_routes_along,
    cases::a_device_that_goes_takes_everything_along,
    cases::a_device_set_down_loses_routes_nexthops_and_neighbours,
    cases::a_setting_is_written_and_read,
    cases::a_devices_settings_come_and_go_with_it,
    cases::two_thousand_peers_go_in_one_apply,
    keys::a_look_at_some_keys_shows_what_a_full_look_shows_of_them,
    keys::a_look_at_some_keys_shows_a_tunnel_as_a_full_look_does_and_leaves_it_carried,
    keys::a_look_at_some_keys_shows_what_was_changed_there,
    refusals::a_foreign_device_on_our_name_is_told_and_left_alone,
    refusals::a_foreign_device_that_is_adopted_is_ours_to_change_and_to_delete,
    refusals::a_foreign_route_on_our_key_is_told_and_left_alone,
    refusals::a_foreign_nexthop_on_our_id_is_told_and_left_alone,
    refusals::what_exists_is_not_made_twice,
    refusals::what_is_absent_is_not_changed,
    refusals::nothing_stands_on_an_absent_device,
    refusals::a_route_needs_its_nexthop,
    refusals::a_nexthop_needs_its_device_up,
    refusals::two_devices_cannot_share_a_vni,
    refusals::what_depends_on_a_failure_is_skipped_and_the_rest_goes_on,
    rules::rules_and_the_routes_of_their_tables_are_as_asked_and_others_are_left_alone,
    rules::a_rule_that_somebody_deletes_wakes,
    guard::without_a_guard_no_tunnel_opens_and_nothing_of_it_is_made,
    guard::a_guard_that_cannot_be_changed_guards_what_is_there_and_nothing_new,
    guard::no_port_is_opened_for_a_wireguard_device_that_is_not_there,
    tunnels::a_gre_tunnel_and_its_peers_are_as_asked_and_go_without_a_trace,
    tunnels::a_route_moves_between_a_gre_tunnel_and_another_device,
    tunnels::a_wireguard_device_and_its_peers_are_as_asked,
    witness::what_the_kernel_remembers_of_senders_is_told_and_is_no_drift,
    notices::a_change_from_outside_wakes,
    notices::a_flood_from_outside_wakes_and_does_not_end_the_notices,
}
