//! The list of cases: each becomes a test of its own in every data plane.

/// Makes a `#[test]` of each case, over the world an expression makes.
macro_rules! every_case {
    ($make:expr) => {
        every_case!(@ $make, mesh_cases:
            published_port_reaches_local_task, published_port_reaches_remote_task,
            connections_spread_and_flows_stay, moved_address_finds_the_same_task, unpublished_traffic_is_left_alone,
            port_in_the_scope_of_one_address, port_on_every_address_comes_before_one_on_this,
            service_without_endpoint_is_refused,
            endpoint_without_the_family_is_not_chosen, removed_endpoint_ends_tcp_and_moves_udp,
            draining_endpoint_keeps_its_flows_only, idle_endpoint_begins_only_what_a_table_says, withdrawn_port_keeps_its_connections,
            endpoints_take_turns, endpoints_are_drawn, a_short_table_does_not_run_into_the_next, a_client_stays_with_its_endpoint,
            two_addresses_one_client_port_do_not_alias, checksums_and_options_survive,
            only_members_may_send_tunnel_packets, endpoint_that_vanished_from_under_its_slots_is_skipped,
        );
        every_case!(@ $make, overlay_cases:
            answer_at_the_entry_node_gets_its_source_back, answer_of_no_flow_is_dropped,
            packets_for_the_router_itself_pass, flow_of_another_node_is_delivered_and_remembered,
            frames_of_others_go_to_the_bridge, answer_to_a_virtual_ip_gets_its_source_back,
        );
        every_case!(@ $make, alias_cases:
            two_other_nodes_and_this_do_not_alias, a_flow_of_this_node_and_one_of_another_do_not_alias,
            a_client_whose_own_port_was_given_away_gets_another, a_connection_whose_address_moved_is_taken_over,
            a_client_of_the_node_and_a_router_do_not_alias, a_balancers_flow_and_one_of_another_node_do_not_alias,
            without_a_port_left_a_flow_is_dropped, a_flow_that_is_over_is_in_nobodys_way,
            a_translated_port_is_kept_when_the_other_flow_is_gone, a_late_packet_does_not_take_anothers_answers,
        );
        every_case!(@ $make, icmp_cases:
            an_error_about_an_answer_reaches_the_task, an_error_about_a_request_reaches_the_client,
            errors_go_by_the_router_that_brought_the_flow, an_error_names_the_leg_that_was_answered_by,
            an_error_shows_the_virtual_ip,
            an_error_between_tasks_of_one_node_shows_the_virtual_ip,
            errors_of_the_nodes_own_flows_are_led_both_ways, a_quote_may_have_options_and_no_checksum,
            errors_of_no_flow_are_left_alone, errors_of_a_balancers_flows_are_the_balancers,
            an_error_in_a_tunnel_goes_the_long_way,
        );
        every_case!(@ $make, fragment_cases:
            fragments_follow_their_first_to_a_task, fragments_of_an_answer_follow_their_first,
            fragments_go_by_the_router_that_brought_the_flow, fragments_to_a_virtual_ip_follow_their_first,
            fragments_of_the_nodes_own_flows_follow_their_first, fragments_of_a_balancers_flow_follow_their_first,
            a_fragment_without_its_first_is_the_hosts_at_an_uplink, a_fragment_without_its_first_goes_no_further,
            a_first_fragment_in_a_tunnel_goes_the_long_way,
        );
        every_case!(@ $make, life_cases:
            a_connection_is_followed_to_its_end, a_flow_of_another_node_is_followed_to_its_end,
            answers_that_were_forgotten_come_back_with_the_flow,
            a_flow_that_was_forgotten_comes_back_with_its_answers, a_flow_to_a_virtual_ip_is_made_whole,
            flows_that_only_begin_leave_room_for_others,
        );
        every_case!(@ $make, bytes_cases:
            a_flow_of_this_node_counts_both_ways, a_flow_of_a_virtual_ip_counts_both_ways,
            a_flow_of_the_node_itself_counts_both_ways, what_another_node_counts_is_not_counted_again,
            what_a_balancer_counts_is_not_counted_again, only_what_is_of_the_ip_packet_counts,
            an_answer_in_a_tunnel_counts_without_it, bytes_outlast_the_record_of_their_flow,
            flows_that_make_room_take_no_bytes_with_them,
        );
        every_case!(@ $make, lane_cases:
            a_tunnel_packet_is_opened_and_delivered, an_answer_in_a_tunnel_goes_to_its_client,
            what_is_inside_may_be_dropped, tunnel_packets_of_another_kind_go_the_long_way,
            a_frame_of_no_flow_goes_the_long_way,
        );
        every_case!(@ $make, local_cases:
            the_node_reaches_a_task_elsewhere, the_node_reaches_a_task_here, what_is_not_published_is_left_alone_here,
            a_client_of_the_node_and_one_elsewhere_do_not_alias,
        );
        every_case!(@ $make, proxy_cases:
            a_task_is_told_of_its_client, data_with_the_first_acknowledgement_waits_for_nothing,
            what_was_told_and_lost_is_told_again, what_opens_nothing_is_told_nothing,
            numbers_come_round_and_nothing_is_told_twice, records_that_were_forgotten_know_where_it_began,
            a_connection_whose_address_moved_was_told_before, a_port_that_is_used_again_begins_anew,
            frames_with_padding_and_options_are_told_right, a_client_of_the_node_is_told_of_too,
        );
        every_case!(@ $make, direct_cases:
            a_frame_names_the_door_that_was_asked, who_is_not_to_answer_is_not_told,
            a_flow_whose_port_is_translated_is_answered_by_the_router, a_task_answers_as_the_door_that_was_asked,
            an_answer_whose_door_is_not_known_goes_to_the_router, a_router_may_change_its_mind,
            flows_by_several_doors_do_not_alias, only_a_router_names_doors,
            an_answer_that_nothing_leads_out_goes_to_the_router,
            a_flow_whose_node_can_no_longer_answer_is_answered_by_the_router,
            a_router_that_changes_its_mind_changes_nothing_else, errors_go_by_the_router_whoever_answers,
            fragments_of_such_a_flow_follow_their_first, the_router_follows_one_half,
        );
        every_case!(@ $make, task_cases:
            answer_goes_to_the_router_it_came_by, answer_by_another_leg_is_put_right,
            answer_of_a_flow_that_entered_here_is_restored, a_task_sends_only_as_itself,
            a_task_without_an_entry_sends_nothing, arp_speaks_for_the_task_only,
            neighbor_discovery_speaks_for_the_task_only, virtual_ip_leads_to_a_remote_task,
            virtual_ip_prefers_another_task, a_task_may_be_its_own_server, virtual_ip_without_endpoint_drops,
            connections_to_an_endpoint_and_through_its_virtual_ip_do_not_mix,
            answer_between_tasks_of_one_node_is_restored, the_virtual_ip_answers_for_its_ethernet_address,
        );
        every_case!(@ $make, balancer_cases:
            published_port_goes_through_the_gate, flows_of_a_balancer_that_only_begin_leave_room_for_others,
            a_flow_stays_with_the_engine_it_began_on,
            without_a_gate_the_table_chooses, answers_of_no_table_are_the_balancers,
            a_balancer_reaches_tasks_here_and_elsewhere, a_balancer_that_forwards_unchanged_steers_nothing,
            only_what_was_translated_leaves_by_the_gate, virtual_ip_goes_to_the_networks_balancer,
            a_task_answers_from_its_virtual_ip_only_where_it_may,
            datagrams_to_a_virtual_ip_are_answered_from_it,
        );
        every_case!(@ $make, sctp_cases:
            an_association_reaches_a_task_and_its_client, an_association_is_followed_to_its_end,
            ports_of_sctp_are_never_translated, unequal_ports_of_sctp_carry_nothing,
            a_question_by_another_path_reaches_no_task, an_association_without_endpoint_is_refused,
            an_association_with_a_virtual_ip, an_association_of_the_node_itself,
            errors_about_an_association_reach_both_ends, fragments_of_an_association_follow_their_first,
            an_association_goes_through_a_balancer,
        );
    };
    (@ $make:expr, $module:ident: $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                support::$module::$name(&mut $make);
            }
        )*
    };
}
pub(crate) use every_case;
