//! With two participants and one crash, every state that can be reached keeps the promises and the
//! invariants.

use model::check::check;
use model::setting::ALL;

#[test]
fn the_protocol_holds_in_every_state() {
    for setting in ALL {
        let report = check(setting, false, 2);
        println!("{:<12} {:>8} states, {:?}", setting.name, report.states, report.time);
        assert!(report.broken.is_none(), "{}: {}\n{}", setting.name, setting.about, report.story());
        assert!(report.states > 300, "{}: hardly anything can happen", setting.name);
    }
}
