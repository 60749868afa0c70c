//! Each rule of the protocol is needed: without it a promise is broken, in so many steps. The table
//! in docs/src/model.md is this one.

use model::check::check;
use model::rules::Rule;
use model::setting::Setting;
use model::world::Faults;

const ATOMIC: &str = "all or nothing";
const STABLE: &str = "an outcome told never changes";
const SETTLED: &str = "everything is settled in the end";
const OTHERS: &str = "no stranger's transaction is touched";

/// What breaks in a setting, with the fewest steps to it.
fn broken(setting: Setting) -> Option<(&'static str, usize)> {
    let report = check(setting, true, 1);
    println!("{:?}, {} states:\n{}", setting.without, report.states, report.story());
    report.broken.map(|(promise, path)| (promise, path.len()))
}

macro_rules! needed {
    ($($test:ident: $rule:ident, $promise:ident, $steps:literal;)+) => {
        $(#[test]
        fn $test() {
            let rule = Rule::$rule;
            assert_eq!(broken(Setting::of(rule).without(rule)), Some(($promise, $steps)));
        })+

        const TABLE: &[(&str, &str, usize)] = &[$((stringify!($test), $promise, $steps)),+];
    };
}

needed! {
    whoever_has_written_prepares: TwoPhases, ATOMIC, 9;
    a_participant_is_listed_before_it_prepares: DurableList, SETTLED, 8;
    the_standby_has_the_list_too: ListReplicated, SETTLED, 7;
    success_is_the_exact_tag: ExactTag, ATOMIC, 8;
    sessions_of_another_incarnation_are_waited_for: OtherIncarnations, SETTLED, 7;
    the_lock_is_confirmed_with_the_prepare: LockConfirmed, SETTLED, 8;
    sessions_are_read_before_the_list: SessionsBefore, SETTLED, 8;
    sessions_are_read_again_after_the_list: SessionsAfter, ATOMIC, 12;
    who_may_still_prepare_is_waited_for: Preparer, SETTLED, 8;
    the_decision_is_read_after_the_list: ListFirst, ATOMIC, 12;
    what_is_left_after_the_list_waits_for_the_next_sweep: LeftBefore, SETTLED, 8;
    what_is_pending_is_left_alone: Undecided, ATOMIC, 13;
    what_is_not_confirmed_is_handed_over: HandOver, SETTLED, 8;
    who_has_not_answered_prepare_is_told: TellTheUnanswered, SETTLED, 8;
    a_session_delivers_what_is_replicated: SessionReplicated, ATOMIC, 10;
    a_resolver_delivers_what_is_replicated: ResolverReplicated, ATOMIC, 14;
    only_who_holds_the_fence_settles: Fence, ATOMIC, 21;
    absence_counts_on_the_recorded_server: Fingerprint, SETTLED, 8;
    absence_counts_at_the_recorded_address: Address, SETTLED, 8;
    gids_are_compared_whole: WholeGid, OTHERS, 7;
    decisions_are_kept_until_all_have_confirmed: KeepDecision, ATOMIC, 14;
    decisions_are_kept_for_who_was_given_up: KeepForgotten, ATOMIC, 19;
    a_lost_answer_is_asked_for: AskAgain, STABLE, 9;
    asking_takes_the_label: TakeLabel, STABLE, 8;
    the_standby_has_what_is_said_of_a_label: LabelReplicated, STABLE, 10;
    a_process_whose_client_has_gone_ends: ClientCheck, SETTLED, 8;
    the_resolver_reads_the_decisions: Look, SETTLED, 10;
    entries_tell_who_is_left_only_if_all_had_one: CountEntries, ATOMIC, 25;
}

/// Each of these two covers for the other: as long as the session is alive, the resolver leaves
/// alone what it has prepared, and once it has ended, the row is there or never will be.
#[test]
fn the_row_comes_first_or_the_owner_is_left_alone() {
    let setting = Setting { faults: Faults::default(), ..Setting::of(Rule::RowFirst) };
    assert_eq!(broken(setting.without(Rule::RowFirst)), None);
    assert_eq!(broken(setting.without(Rule::Owner)), None);
    let neither = setting.without(Rule::RowFirst).without(Rule::Owner);
    assert_eq!(broken(neither), Some((ATOMIC, 11)));
}

#[test]
fn the_book_has_the_table() {
    let page = include_str!("../../../docs/src/model.md");
    for (rule, promise, steps) in TABLE {
        let row = format!("| {} | {promise} | {steps} |", rule.replace('_', " "));
        assert!(page.contains(&row), "not in docs/src/model.md: {row}");
    }
    assert_eq!(TABLE.len() + 2, Rule::ALL.len(), "a rule without a test");
}
