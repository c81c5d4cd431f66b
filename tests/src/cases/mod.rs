//! The cases, by what they are about. Each is a function of its surroundings that returns the story of its
//! failure; the lists here say in which tier and under which name it runs.

pub mod accounts;
pub mod attacks;
pub mod bare;
pub mod batch;
pub mod command_line;
pub mod crowds;
pub mod ends;
pub mod enroot_images;
pub mod environments;
pub mod events;
pub mod exhaustion;
pub mod export;
pub mod extracted;
pub mod faults;
pub mod image_commands;
pub mod image_faults;
pub mod image_trees;
pub mod instances;
pub mod kept;
pub mod kernel_mounts;
pub mod kills;
pub mod late;
pub mod lost_nodes;
pub mod names;
pub mod neighbour;
pub mod no_helpers;
pub mod options;
pub mod oras_images;
pub mod other_kernels;
pub mod packaging;
pub mod pins;
pub mod plain_fs;
pub mod plugin_lines;
pub mod policy;
pub mod private_images;
pub mod private_tmp;
pub mod privileged;
pub mod progress;
pub mod pull_crashes;
pub mod pushes;
pub mod pyxis;
pub mod pyxis_ways;
pub mod records;
pub mod registry_sinks;
pub mod releases;
pub mod requeues;
pub mod rest;
pub mod sif_files;
pub mod silent;
pub mod site_install;
pub mod site_machines;
pub mod slurm_lines;
pub mod small_jobs;
pub mod soak;
pub mod steps;
pub mod stored_images;
pub mod unfinished;
pub mod uses;

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::Trial;

use crate::cluster::{Cluster, Variant};
use crate::environment::TestEnv;
use crate::images::Images;
use crate::leaks::Snapshot;
use crate::reached_registry::ReachedRegistry;
use crate::tier::{self, Check, Skip};

/// A case of the cluster tier that needs Slurm alone.
pub type BareCase = fn(&Cluster) -> Check;

const BARE: &[(&str, BareCase)] = &[
    ("four_nodes", bare::four_nodes),
    ("exit_codes", bare::exit_codes),
    ("task_prolog", bare::task_prolog),
    ("gpu", bare::gpu),
    ("mpi", bare::mpi),
    ("leaks_are_seen", bare::leaks_are_seen),
];

/// A machine without Slurm: a user, the program, and images.
#[derive(Debug, Clone)]
pub struct Desk {
    /// The surroundings.
    pub env: TestEnv,
    /// The images.
    pub images: Images,
}

/// A case that needs no Slurm.
pub type DeskCase = fn(&Desk) -> Check;

const COMMAND_LINE: &[(&str, DeskCase)] = &[
    ("exec_each_kind", command_line::exec_each_kind),
    ("python_and_numpy", command_line::python_and_numpy),
    ("exit_codes", command_line::exit_codes),
    ("run_and_shell", command_line::run_and_shell),
    ("defaults_from_inside", command_line::defaults_from_inside),
    ("unsquashfs_reads_ours", command_line::unsquashfs_reads_ours),
    ("options::contain", options::contain),
    ("options::fakeroot", options::fakeroot),
    ("options::namespaces", options::namespaces),
    ("options::overlays", options::overlays),
    ("options::seccomp", options::seccomp),
    ("plan_runs_nothing", command_line::plan_runs_nothing),
    ("runs_are_recorded", command_line::runs_are_recorded),
    ("forbidden_registry", policy::forbidden_registry),
    ("verdict_in_the_plan", policy::verdict_in_the_plan),
    ("entered_instances", policy::entered_instances),
    ("convert_there_and_back", image_commands::convert_there_and_back),
    ("convert_refuses", image_commands::convert_refuses),
    ("unpacked", image_commands::unpacked),
    ("layouts_and_archives", image_commands::layouts_and_archives),
    ("sif_edits_refuse", sif_files::sif_edits_refuse),
    ("interrupted_pull", image_commands::interrupted_pull),
    ("interrupted_twice", image_commands::interrupted_twice),
    ("pushes::refused", pushes::refused),
    ("pushes::interrupted", pushes::interrupted),
    ("private_images::logins", private_images::logins),
    ("private_images::files_of_other_tools", private_images::files_of_other_tools),
    ("instances::life", instances::life),
    ("instances::start_script", instances::start_script),
    ("instances::stop", instances::stop),
    ("instances::stats", instances::stats),
    ("instances::filters", instances::filters),
    ("events::are_as_published", events::are_as_published),
    ("events::on_a_descriptor", events::on_a_descriptor),
    ("enroot_images::as_its_import_makes_them", enroot_images::as_its_import_makes_them),
    ("extracted::as_by_fuse", extracted::as_by_fuse),
    ("extracted::many_at_once", extracted::many_at_once),
    ("extracted::used_ones_stay", extracted::used_ones_stay),
    ("site_install::in_a_tree", site_install::in_a_tree),
    ("site_install::refused", site_install::refused),
    ("site_machines::links_in_a_tree", site_machines::links_in_a_tree),
];

const PRIVILEGED: &[(&str, DeskCase)] = &[
    ("kernel_mounts_ours", privileged::kernel_mounts_ours),
    ("image_trees::of_the_demonstration", image_trees::of_the_demonstration),
    ("apptainer_runs_ours", privileged::apptainer_runs_ours),
    ("we_run_apptainers", privileged::we_run_apptainers),
    ("same_as_apptainer", privileged::same_as_apptainer),
    ("sif_edits_on_both_sides", sif_files::sif_edits_on_both_sides),
    ("several_architectures", sif_files::several_architectures),
    ("attacks::signed_and_altered", sif_files::signed_and_altered),
    ("kernel_and_we_read_alike", sif_files::kernel_and_we_read_alike),
    ("images_for_other_tools", sif_files::images_for_other_tools),
    ("pull", privileged::pull),
    ("pull_of_a_tampered_layer", privileged::pull_of_a_tampered_layer),
    ("pull_and_exec", image_commands::pull_and_exec),
    ("pushes::every_source", pushes::every_source),
    ("pushes::sif_both_ways", pushes::sif_both_ways),
    ("oras_images::as_the_file", oras_images::as_the_file),
    ("oras_images::refused", oras_images::refused),
    ("registry_sinks::as_from_a_layout", registry_sinks::as_from_a_layout),
    ("stored_images::used_ones_stay", stored_images::used_ones_stay),
    ("stored_images::of_the_site", stored_images::of_the_site),
    ("plain_fs::convert", plain_fs::convert),
    ("plain_fs::stores", plain_fs::stores),
    ("private_images::another_users", private_images::another_users),
    ("private_images::in_the_sites_store", private_images::in_the_sites_store),
    ("private_images::of_private_layers", private_images::of_private_layers),
    ("private_images::by_sha512", private_images::by_sha512),
    ("private_images::in_clear", private_images::in_clear),
    ("private_images::over_tls", private_images::over_tls),
    ("private_images::by_client_certificates", private_images::by_client_certificates),
    ("allowed_registry", policy::allowed_registry),
    ("wrong_digest", image_commands::wrong_digest),
    ("attacks::own_binary", attacks::own_binary),
    ("attacks::working_directory", attacks::working_directory),
    ("attacks::descriptors_and_variables", attacks::descriptors_and_variables),
    ("attacks::processes_and_mounts", attacks::processes_and_mounts),
    ("attacks::over_mounted_proc", attacks::over_mounted_proc),
    ("attacks::links_out_of_the_image", attacks::links_out_of_the_image),
    ("attacks::terminal_and_devices", attacks::terminal_and_devices),
    ("attacks::neighbouring_prefixes", attacks::neighbouring_prefixes),
    ("attacks::inherited_capabilities", attacks::inherited_capabilities),
    ("attacks::hostile_layers", attacks::hostile_layers),
    ("attacks::swapped_directories", attacks::swapped_directories),
    ("attacks::control_groups", attacks::control_groups),
    ("attacks::exchanged_sources", attacks::exchanged_sources),
    ("attacks::account_files", attacks::account_files),
    ("attacks::environment_scripts", attacks::environment_scripts),
    ("attacks::device_nodes_and_set_uid_programs", attacks::device_nodes_and_set_uid_programs),
    ("attacks::entering_tasks", attacks::entering_tasks),
    ("attacks::entering_an_instance", attacks::entering_an_instance),
    ("attacks::a_strangers_step", attacks::a_strangers_step),
    ("attacks::noise_at_the_meeting_point", attacks::noise_at_the_meeting_point),
    ("attacks::open_umask", attacks::open_umask),
    ("attacks::another_tenants_view", attacks::another_tenants_view),
    ("accounts::only_by_name_service", accounts::only_by_name_service),
    ("accounts::subordinate_ids", accounts::subordinate_ids),
    ("accounts::sharing_by_ids", accounts::sharing_by_ids),
    ("exhaustion::limits", exhaustion::limits),
    ("exhaustion::no_namespaces_left", exhaustion::no_namespaces_left),
    ("exhaustion::full_places", exhaustion::full_places),
    ("exhaustion::no_room_for_a_tree", exhaustion::no_room_for_a_tree),
    ("instances::stats_of_a_control_group", instances::stats_of_a_control_group),
    ("small_jobs::address_space", small_jobs::address_space),
    ("small_jobs::control_group", small_jobs::control_group),
    ("small_jobs::pull_in_a_control_group", small_jobs::pull_in_a_control_group),
    ("small_jobs::threads", small_jobs::threads),
    ("small_jobs::written_into_memory", small_jobs::written_into_memory),
    ("exhaustion::dead_mounts", exhaustion::dead_mounts),
    ("extracted::without_a_device", extracted::without_a_device),
    ("extracted::killed_while_extracting", extracted::killed_while_extracting),
    ("extracted::killed_before_a_name", extracted::killed_before_a_name),
    ("instances::killed", instances::killed),
    ("instances::interrupted_start", instances::interrupted_start),
    ("instances::tampered_state", instances::tampered_state),
    ("kernel_mounts::by_root", kernel_mounts::by_root),
    ("kernel_mounts::flags_are_locked", kernel_mounts::flags_are_locked),
    ("kernel_mounts::of_others", kernel_mounts::of_others),
    ("kernel_mounts::exchanged_images", kernel_mounts::exchanged_images),
    ("kernel_mounts::many_at_once", kernel_mounts::many_at_once),
    ("killed_pull", kills::killed_pull),
    ("apparmor_profile", packaging::apparmor_profile),
    ("symbols_of_the_plugin", packaging::symbols_of_the_plugin),
    ("pull_crashes::at_every_step", pull_crashes::at_every_step),
    ("pull_crashes::synced_before_named", pull_crashes::synced_before_named),
    ("pull_crashes::beyond_a_quota", pull_crashes::beyond_a_quota),
    ("pull_crashes::fifty_at_once", pull_crashes::fifty_at_once),
    ("pull_crashes::several_machines_at_once", pull_crashes::several_machines_at_once),
    ("pull_crashes::through_a_bad_network", pull_crashes::through_a_bad_network),
    ("plugin_lines::entry_point", plugin_lines::entry_point),
    ("plugin_lines::batch_scripts", plugin_lines::batch_scripts),
    ("plugin_lines::prefix_and_scope", plugin_lines::prefix_and_scope),
    ("plugin_lines::named_settings", plugin_lines::named_settings),
    ("plugin_lines::switched_off", plugin_lines::switched_off),
    ("plugin_lines::not_understood", plugin_lines::not_understood),
    ("plugin_lines::another_protocol", plugin_lines::another_protocol),
    ("plugin_lines::another_trampoline", plugin_lines::another_trampoline),
    ("site_install::on_a_cluster", site_install::on_a_cluster),
    ("site_install::under_a_running_step", site_install::under_a_running_step),
    ("site_machines::configless", site_machines::configless),
    ("site_machines::rival_plugin", site_machines::rival_plugin),
    ("site_machines::planted_list", site_machines::planted_list),
    ("machine_is_left_alone", neighbour::machine_is_left_alone),
    ("no_helper_is_started", no_helpers::nothing_is_started),
    ("a_start_syncs_nothing", no_helpers::a_start_syncs_nothing),
    ("a_file_is_hashed_once", no_helpers::a_file_is_hashed_once),
    ("progress::lines_in_a_log", progress::lines_in_a_log),
];

/// Privileged cases of `make test-full` alone: what they need takes long to make.
const PRIVILEGED_FULL: &[(&str, DeskCase)] = &[
    ("pull_crashes::through_a_silent_network", pull_crashes::through_a_silent_network),
    ("image_trees::of_many_layers", image_trees::of_many_layers),
    ("small_jobs::nearly_a_million_files", small_jobs::nearly_a_million_files),
    ("slurm_of_trixie", releases::trixie),
    ("slurm_without_munge", releases::without_munge),
    ("slurm_of_sid", releases::sid),
    ("other_kernels::apparmor", other_kernels::apparmor),
    ("other_kernels::trixie", other_kernels::trixie),
    ("other_kernels::sid", other_kernels::sid),
];

/// Runs the command-line tier.
#[must_use]
pub fn run_command_line() -> ExitCode {
    run_on_desk(COMMAND_LINE, &[])
}

/// Runs the privileged tier.
#[must_use]
pub fn run_privileged() -> ExitCode {
    run_on_desk(PRIVILEGED, PRIVILEGED_FULL)
}

fn run_on_desk(cases: &[(&'static str, DeskCase)], in_full: &[(&'static str, DeskCase)]) -> ExitCode {
    let env = TestEnv::from_environment();
    let in_full = if env.full() { in_full } else { &[] };
    let desk: Arc<OnceLock<Result<Desk, String>>> = Arc::default();
    let trials = cases.iter().chain(in_full).map(|&(name, case)| {
        let ready = {
            let (env, desk) = (env.clone(), Arc::clone(&desk));
            move || {
                tier::root()?;
                tier::user(&env)?;
                tier::program(&env)?;
                tier::image(&env, "demo")?;
                tier::image(&env, "tiny")?;
                tools(&env, name)?;
                let prepare = || Ok(Desk { env: env.clone(), images: Images::prepare(&env)? });
                Ok(desk.get_or_init(prepare).clone())
            }
        };
        tier::trial(&env, name, ready, move |desk: Result<Desk, String>| {
            let desk = desk?;
            let before = Snapshot::take(&desk.env, None)?;
            case(&desk)?;
            before.expect_clean()?;
            Ok(())
        })
    });
    tier::run(trials.collect())
}

/// A cluster with the plugin loaded, and images to start on it.
#[derive(Debug, Clone)]
pub struct Site {
    /// The cluster.
    pub cluster: Cluster,
    /// The images.
    pub images: Images,
}

impl Site {
    /// The same machine and images, without the cluster.
    fn desk(&self) -> Desk {
        Desk { env: self.env().clone(), images: self.images.clone() }
    }

    /// The surroundings.
    #[must_use]
    pub fn env(&self) -> &TestEnv {
        self.cluster.env()
    }

    /// The test registry, with the images of `scripts/make-image`, as nodes and login node reach it.
    fn registry(&self) -> Result<ReachedRegistry, String> {
        let desk = self.desk();
        let address = privileged::registry(&desk, "up")?.stdout.trim().to_owned();
        privileged::registry(&desk, "push")?;
        ReachedRegistry::of(&self.cluster, &address)
    }

    fn prepare(cluster: &Cluster) -> Result<Self, String> {
        let env = cluster.env();
        let trampoline = format!("trampoline={}", env.situla().display());
        cluster.control(&["plugin", "install", &env.spank().display().to_string(), &trampoline])?;
        // slurmd was restarted, so the nodes' processes are others now.
        Ok(Self { cluster: Cluster::find(env, cluster.variant())?, images: Images::prepare(env)? })
    }
}

/// A case of the cluster tier that needs our programs.
pub type SiteCase = fn(&Site) -> Check;

const ON_SITE: &[(&str, SiteCase)] = &[
    ("uses::srun_apptainer_exec", uses::srun_apptainer_exec),
    ("uses::sbatch_apptainer", uses::sbatch_apptainer),
    ("uses::plugin_on_four_nodes", uses::plugin_on_four_nodes),
    ("uses::tasks_share_a_container", uses::tasks_share_a_container),
    ("uses::task_prolog", uses::task_prolog),
    ("uses::mpi", uses::mpi),
    ("uses::gpu", uses::gpu),
    ("uses::step_in_a_plain_allocation", uses::step_in_a_plain_allocation),
    ("uses::mounts_and_shm", uses::mounts_and_shm),
    ("uses::record_is_complete", uses::record_is_complete),
    ("uses::keeper_in_the_steps_cgroup", uses::keeper_in_the_steps_cgroup),
    ("pyxis::switches", pyxis::switches),
    ("pyxis::writable", pyxis::writable),
    ("pyxis::variables", pyxis::variables),
    ("pyxis::contradictions", pyxis::contradictions),
    ("pyxis::mounts", pyxis::mounts),
    ("environments::every_key", environments::every_key),
    ("environments::image_mounts", environments::image_mounts),
    ("environments::devices", environments::devices),
    ("environments::steps_from_inside", environments::steps_from_inside),
    ("environments::steps_on_other_nodes_from_inside", environments::steps_on_other_nodes_from_inside),
    ("environments::names_and_inheritance", environments::names_and_inheritance),
    ("environments::refused", environments::refused),
    ("ends::codes_and_signals", ends::codes_and_signals),
    ("ends::scancel_at_any_moment", ends::scancel_at_any_moment),
    ("ends::term_and_kill", ends::term_and_kill),
    ("ends::kill_of_our_processes", ends::kill_of_our_processes),
    ("silent::kill_of_a_task", silent::kill_of_a_task),
    ("ends::kill_on_one_of_two_nodes", ends::kill_on_one_of_two_nodes),
    ("faults::missing_image", faults::missing_image),
    ("faults::wrong_layer_in_a_registry", faults::wrong_layer_in_a_registry),
    ("faults::policy_denial", faults::policy_denial),
    ("faults::refused_options", faults::refused_options),
    ("faults::missing_mount_source", faults::missing_mount_source),
    ("pyxis_ways::without_an_image", pyxis_ways::without_an_image),
    ("slurm_lines::multi_prog", slurm_lines::multi_prog),
    ("faults::pty", faults::pty),
    ("faults::batch_script_with_options", faults::batch_script_with_options),
    ("faults::submission_without_plugin", faults::submission_without_plugin),
    ("lost_nodes::no_trampoline_on_one_node", lost_nodes::no_trampoline_on_one_node),
    ("steps::task_epilog", steps::task_epilog),
    ("records::one_per_step_and_node", records::one_per_step_and_node),
    ("accounts::in_steps", accounts::in_steps),
    ("crowds::ranks_reach_each_other", crowds::ranks_reach_each_other),
    ("crowds::mpi_copies_directly", crowds::mpi_copies_directly),
    ("late::after_the_first_has_ended", late::after_the_first_has_ended),
    ("late::while_the_first_fails", late::while_the_first_fails),
    ("slurm_lines::heterogeneous", slurm_lines::heterogeneous),
    ("slurm_lines::kill_in_a_heterogeneous_job", slurm_lines::kill_in_a_heterogeneous_job),
    ("slurm_lines::own_death_in_a_component", slurm_lines::own_death_in_a_component),
    ("export::keeps_the_container", export::keeps_the_container),
    ("export::steps_of_a_bare_script", export::steps_of_a_bare_script),
    ("uses::image_from_a_registry", uses::image_from_a_registry),
    ("unfinished::scancel_while_fetching", unfinished::scancel_while_fetching),
    ("image_faults::registry_goes_away", image_faults::registry_goes_away),
    ("image_faults::no_room_in_the_store", image_faults::no_room_in_the_store),
    ("image_faults::converter_is_killed", image_faults::converter_is_killed),
    ("names::later_steps", names::later_steps),
    ("names::at_once", names::at_once),
    ("names::saved", names::saved),
    ("names::saved_on_two_nodes", names::saved_on_two_nodes),
    ("names::refused", names::refused),
    ("names::cancelled_save", names::cancelled_save),
    ("names::variables", names::variables),
    ("names::scopes", names::scopes),
    ("names::until_the_epilog", names::until_the_epilog),
    ("kept::shut_files", kept::shut_files),
    ("kept::failed_saves", kept::failed_saves),
    ("kept::not_all_started", kept::not_all_started),
    ("kept::requeued", kept::requeued),
    ("pins::steps_of_a_job", pins::steps_of_a_job),
    ("pins::tasks_of_an_array", pins::tasks_of_an_array),
    ("pins::steps_of_a_bare_script", pins::steps_of_a_bare_script),
    ("pins::forged", pins::forged),
    ("pins::of_sif_files", pins::of_sif_files),
    ("pins::components_of_a_job", pins::components_of_a_job),
    ("pins::tasks_at_once", pins::tasks_at_once),
    ("requeues::started_again", requeues::started_again),
    ("requeues::preempted_and_cancelled", requeues::preempted_and_cancelled),
    ("requeues::preempted_by_quality", requeues::preempted_by_quality),
    ("steps::overlapping", steps::overlapping),
    ("steps::cancelled_in_an_array", steps::cancelled_in_an_array),
    ("steps::gpus_of_each_task", steps::gpus_of_each_task),
    ("attacks::outside_the_step", attacks::outside_the_step),
];

/// Cases to which nodes of their own would add nothing but time, or of which they keep what the case looks at.
const ON_LOOPBACK: &[(&str, SiteCase)] = &[
    // Between nodes that are hosts of their own this MPICH hangs in MPI_Finalize every other time, in no container as well.
    ("steps::mpich_by_pmi2", steps::mpich_by_pmi2),
    // It looks at processes and sockets of two jobs by the names that the machine has for them.
    ("attacks::two_users_jobs", attacks::two_users_jobs),
    // What srun, sbatch or slurmrestd makes of words.
    ("faults::unknown_option", faults::unknown_option),
    ("faults::inherited_options", faults::inherited_options),
    ("pyxis_ways::of_every_program", pyxis_ways::of_every_program),
    ("slurm_lines::multi_prog_however_written", slurm_lines::multi_prog_however_written),
    ("slurm_lines::apptainer_in_the_table", slurm_lines::apptainer_in_the_table),
    ("slurm_lines::not_multi_prog", slurm_lines::not_multi_prog),
    ("rest::submitted", rest::submitted),
    // What happens on one node alone, between our processes, the kernel, and Slurm's control groups.
    ("uses::kinds_of_images", uses::kinds_of_images),
    ("ends::command_missing", ends::command_missing),
    ("ends::time_limit", ends::time_limit),
    ("faults::truncated_image", faults::truncated_image),
    ("faults::wrong_layer", faults::wrong_layer),
    ("instances::ends_with_its_step", instances::ends_with_its_step),
    ("extracted::tasks_of_a_step", extracted::tasks_of_a_step),
    ("kernel_mounts::tasks_of_a_step", kernel_mounts::tasks_of_a_step),
    ("crowds::sharing_switched_off", crowds::sharing_switched_off),
    ("ends::a_record_that_hangs", ends::a_record_that_hangs),
    ("exhaustion::fuse_aborted", exhaustion::fuse_aborted),
    ("exhaustion::in_a_step", exhaustion::in_a_step),
    ("exhaustion::limits_in_a_step", exhaustion::limits_in_a_step),
    ("exhaustion::limits_through_the_plugin", exhaustion::limits_through_the_plugin),
    ("exhaustion::bind_of_a_dead_server", exhaustion::bind_of_a_dead_server),
    ("exhaustion::memory_of_a_step", exhaustion::memory_of_a_step),
    ("exhaustion::memory_above_an_image", exhaustion::memory_above_an_image),
    ("exhaustion::memory_above_two_images", exhaustion::memory_above_two_images),
    ("exhaustion::server_of_a_bind_dies", exhaustion::server_of_a_bind_dies),
    ("uses::background_runs_stay_apart", uses::background_runs_stay_apart),
    ("ends::kill_without_a_record", ends::kill_without_a_record),
    ("ends::kill_with_a_closed_record", ends::kill_with_a_closed_record),
    ("ends::kill_of_another_engine", ends::kill_of_another_engine),
    ("faults::image_changes_under_a_job", faults::image_changes_under_a_job),
    ("unfinished::scancel_while_extracting", unfinished::scancel_while_extracting),
    ("unfinished::a_slow_pull", unfinished::a_slow_pull),
    ("kills::at_random_moments", kills::at_random_moments),
    ("crowds::one_of_many_is_killed", crowds::one_of_many_is_killed),
    ("soak::many_steps", soak::many_steps),
    ("kept::cut_off_saves", kept::cut_off_saves),
    ("batch::ends_of_a_script", batch::ends_of_a_script),
    // At the end: the node has another process afterwards.
    ("lost_nodes::slurmd_alone_dies", lost_nodes::slurmd_alone_dies),
];

/// Cases that need nodes with processes and a `/tmp` of their own.
const ON_ISOLATED: &[(&str, SiteCase)] = &[
    ("names::of_each_node", names::of_each_node),
    ("lost_nodes::slurmd_alone_dies", lost_nodes::slurmd_alone_dies),
    ("lost_nodes::a_node_dies", lost_nodes::a_node_dies),
];

/// Cases of isolated nodes that change one and look for leaks themselves, as [`ON_SICK_NODES`].
const ON_CHANGED_NODES: &[(&str, SiteCase)] = &[("private_tmp::is_the_jobs", private_tmp::is_the_jobs)];

/// Cases that change a node and look for leaks themselves, while the fault lasts.
const ON_SICK_NODES: &[(&str, SiteCase)] =
    &[("faults::no_fuse", faults::no_fuse), ("faults::no_user_namespaces", faults::no_user_namespaces)];

/// Cases about what all others have left behind.
const AT_LAST: &[(&str, SiteCase)] = &[("records::match_the_schema", records::match_the_schema)];

/// What a case needs beyond what all need.
fn tools(env: &TestEnv, name: &str) -> Result<(), Skip> {
    match name {
        "accounts::only_by_name_service" | "accounts::in_steps" => accounts::ready(),
        "plan_runs_nothing"
        | "late::while_the_first_fails"
        | "a_start_syncs_nothing"
        | "extracted::killed_before_a_name"
        | "a_file_is_hashed_once" => no_helpers::tracer(),
        "no_helper_is_started" => no_helpers::tracer().and_then(|()| privileged::registry_program()),
        "apptainer_runs_ours"
        | "we_run_apptainers"
        | "same_as_apptainer"
        | "sif_edits_on_both_sides"
        | "several_architectures" => privileged::apptainer_tree(env),
        "attacks::signed_and_altered" => {
            privileged::apptainer_tree(env)?;
            tier::succeeds("openssl", &["version"]).map_err(|why| Skip(format!("needs openssl: {why}")))
        }
        "pushes::sif_both_ways" => {
            privileged::apptainer_tree(env).and_then(|()| privileged::registry_program())
        }
        "images_for_other_tools"
        | "pushes::every_source"
        | "oras_images::as_the_file"
        | "oras_images::refused"
        | "pull"
        | "pull_of_a_tampered_layer"
        | "pull_and_exec"
        | "stored_images::used_ones_stay"
        | "stored_images::of_the_site"
        | "private_images::another_users"
        | "private_images::in_the_sites_store"
        | "private_images::of_private_layers"
        | "private_images::by_sha512"
        | "private_images::in_clear"
        | "private_images::over_tls"
        | "private_images::by_client_certificates"
        | "allowed_registry"
        | "wrong_digest"
        | "exhaustion::full_places"
        | "killed_pull"
        | "pull_crashes::fifty_at_once"
        | "pull_crashes::through_a_bad_network"
        | "faults::wrong_layer_in_a_registry"
        | "uses::image_from_a_registry"
        | "unfinished::scancel_while_fetching"
        | "unfinished::a_slow_pull"
        | "image_faults::registry_goes_away"
        | "image_faults::no_room_in_the_store"
        | "image_faults::converter_is_killed"
        | "kills::at_random_moments" => privileged::registry_program(),
        "kernel_mounts::by_root"
        | "kernel_mounts::of_others"
        | "kernel_mounts::exchanged_images"
        | "kernel_mounts::many_at_once" => kernel_mounts::erofs_maker(),
        "kernel_mounts::tasks_of_a_step" => {
            kernel_mounts::erofs_maker()?;
            kernel_mounts::loop_devices()
        }
        "apparmor_profile" => packaging::parser(env),
        "symbols_of_the_plugin" => {
            tier::plugin(env)?;
            tier::succeeds("nm", &["--version"]).map_err(|why| Skip(format!("needs binutils: {why}")))
        }
        "site_machines::rival_plugin" => {
            tier::plugin(env)?;
            site_machines::compiler()
        }
        name if ["plugin_lines::", "site_install::", "site_machines::"]
            .iter()
            .any(|part| name.starts_with(part)) =>
        {
            tier::plugin(env)
        }
        "enroot_images::as_its_import_makes_them" => enroot_images::maker(),
        "plain_fs::convert" | "plain_fs::stores" | "attacks::hostile_layers" => plain_fs::interpreter(),
        "image_trees::of_the_demonstration" => image_trees::tools(),
        "registry_sinks::as_from_a_layout" => {
            privileged::registry_program()?;
            image_trees::tools()
        }
        "image_trees::of_many_layers" => image_trees::large_image(env),
        "pull_crashes::at_every_step" => {
            privileged::registry_program()?;
            image_trees::tools()?;
            no_helpers::tracer()
        }
        "pull_crashes::synced_before_named" | "progress::lines_in_a_log" | "pull_crashes::beyond_a_quota" => {
            privileged::registry_program()?;
            no_helpers::tracer()
        }
        "small_jobs::threads" => small_jobs::processors(),
        "instances::stats_of_a_control_group"
        | "small_jobs::control_group"
        | "small_jobs::written_into_memory"
        | "small_jobs::nearly_a_million_files" => small_jobs::ready(),
        "crowds::mpi_copies_directly" | "steps::mpich_by_pmi2" => crowds::compilers(),
        "rest::submitted" => rest::daemon(),
        "records::match_the_schema" | "events::are_as_published" => records::validator(),
        "slurm_of_trixie" | "slurm_without_munge" => releases::prepared(env, "trixie"),
        "slurm_of_sid" => releases::prepared(env, "sid"),
        "other_kernels::trixie" => other_kernels::prepared(env, "trixie"),
        "other_kernels::sid" => other_kernels::prepared(env, "sid"),
        "other_kernels::apparmor" => {
            packaging::parser(env).and_then(|()| other_kernels::prepared(env, "sid"))
        }
        _ => Ok(()),
    }
}

/// What a case needs of the cluster.
fn abilities(cluster: &Cluster, name: &str) -> Result<(), Skip> {
    match name {
        "gpu"
        | "uses::gpu"
        | "steps::gpus_of_each_task"
        | "uses::keeper_in_the_steps_cgroup"
        | "attacks::outside_the_step"
        | "exhaustion::memory_of_a_step"
        | "exhaustion::memory_above_an_image"
        | "exhaustion::memory_above_two_images"
            if !cluster.constrains_devices() =>
        {
            Err(Skip("Slurm has no control groups on this machine: it keeps no step apart".into()))
        }
        _ => Ok(()),
    }
}

/// Runs all cluster cases on one variant.
#[must_use]
pub fn run_on_cluster(variant: Variant) -> ExitCode {
    let env = TestEnv::from_environment();
    // Found once: every case asks, and the answer does not change.
    let found: Arc<OnceLock<Result<Cluster, String>>> = Arc::default();
    let mut trials: Vec<Trial> = Vec::new();
    for (name, case) in BARE {
        let ready = {
            let (env, found) = (env.clone(), Arc::clone(&found));
            move || {
                tier::root()?;
                tier::user(&env)?;
                tier::image(&env, "demo")?;
                let cluster = found.get_or_init(|| Cluster::find(&env, variant)).clone().map_err(Skip)?;
                abilities(&cluster, name)?;
                Ok(cluster)
            }
        };
        trials.push(tier::trial(&env, &format!("bare::{name}"), ready, move |cluster: Cluster| {
            watched(&cluster, || case(&cluster))
        }));
    }
    let site: Arc<OnceLock<Result<Site, String>>> = Arc::default();
    let (on_variant, changed) = match variant {
        Variant::Loopback => (ON_LOOPBACK, &[][..]),
        Variant::Isolated => (ON_ISOLATED, ON_CHANGED_NODES),
    };
    for (name, case) in ON_SITE.iter().chain(on_variant).chain(changed).chain(ON_SICK_NODES).chain(AT_LAST) {
        let sick = changed.iter().chain(ON_SICK_NODES).any(|(other, _)| other == name);
        let ready = {
            let (env, found, site) = (env.clone(), Arc::clone(&found), Arc::clone(&site));
            move || {
                tier::root()?;
                tier::user(&env)?;
                tier::program(&env)?;
                tier::plugin(&env)?;
                tier::image(&env, "demo")?;
                tier::image(&env, "tiny")?;
                tools(&env, name)?;
                let cluster = found.get_or_init(|| Cluster::find(&env, variant)).clone().map_err(Skip)?;
                abilities(&cluster, name)?;
                // From here on nothing is a reason to skip: what fails now is the system's failure.
                Ok(site.get_or_init(|| Site::prepare(&cluster)).clone())
            }
        };
        trials.push(tier::trial(&env, name, ready, move |site: Result<Site, String>| {
            let site = site?;
            if sick {
                cancelled_if_failed(&site.cluster, case(&site))
            } else {
                watched(&site.cluster, || case(&site))
            }
        }));
    }
    tier::run(trials)
}

/// Runs a case; afterwards every node must be usable and nothing may be left.
fn watched(cluster: &Cluster, case: impl FnOnce() -> Check) -> Check {
    let before = Snapshot::take(cluster.env(), Some(cluster))?;
    cancelled_if_failed(cluster, case())?;
    cluster.settled()?;
    before.expect_clean()?;
    Ok(())
}

/// The jobs of a case that has failed are cancelled: they would keep the next cases waiting for their nodes.
fn cancelled_if_failed(cluster: &Cluster, check: Check) -> Check {
    if check.is_err() {
        // Should this fail as well, the cases that come will say so.
        let _ = cluster.admin(&["scancel", "--user", cluster.env().user()]);
        let _ = cluster.settled();
    }
    check
}
