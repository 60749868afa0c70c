//! Whose answer it is, beside a server that answers in order; and with answers in any order.

use std::collections::{BTreeMap, VecDeque};

use crate::data::Data;
use crate::protocol::pipeline::{Control, Effect, Fifo, Kind, Ticket};

const CONTROLS: [Control; 9] = [
    Control::Setup,
    Control::SessionLock,
    Control::Begin,
    Control::Snapshot,
    Control::Savepoint(2),
    Control::Cleanup,
    Control::XidProbe,
    Control::Ending,
    Control::Delivery,
];

/// What a server has still to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    Statement(Ticket, u32),
    Control(Control),
    Sync,
}

/// What an owner may ask for.
#[derive(Clone, Copy)]
struct Owed {
    level: u32,
    /// The number of the answer, and whether it is a failure; `None` until it has come.
    answer: Option<(u64, bool)>,
}

pub(super) fn pipeline(data: &[u8]) {
    let mut data = Data(data);
    // A server that keeps to the protocol, or any answers.
    if data.flag() { in_order(&mut data) } else { in_any_order(&mut data) }
}

fn ask(data: &mut Data, fifo: &mut Fifo<u64>) -> Request {
    match data.below(4) {
        0 => {
            fifo.sync();
            Request::Sync
        }
        1 => {
            let control = data.choose(&CONTROLS);
            fifo.control(control);
            Request::Control(control)
        }
        _ => {
            let level = 1 + u32::from(data.below(4));
            Request::Statement(fifo.statement(level, None), level)
        }
    }
}

fn in_order(data: &mut Data) {
    let mut fifo: Fifo<u64> = Fifo::default();
    let mut requests: VecDeque<Request> = VecDeque::new();
    let mut owed: BTreeMap<Ticket, Owed> = BTreeMap::new();
    // The failure that skips the rest of the segment.
    let mut failure = None;
    let mut number = 0;
    while !data.is_empty() {
        match data.below(6) {
            0..2 => {
                let request = ask(data, &mut fifo);
                if let Request::Statement(ticket, level) = request {
                    owed.insert(ticket, Owed { level, answer: None });
                }
                requests.push_back(request);
            }
            2..4 => {
                let Some(request) = requests.pop_front() else { continue };
                number += 1;
                let kind = match (request, failure) {
                    (Request::Sync, _) => Kind::Sync,
                    (_, Some(_)) => Kind::Skipped,
                    (_, None) if data.below(5) == 1 => Kind::Failed,
                    (_, None) => Kind::Done,
                };
                failure = match kind {
                    Kind::Sync => None,
                    Kind::Failed => Some(number),
                    Kind::Done | Kind::Skipped => failure,
                };
                let effect = fifo.answer(kind, number).expect("the server keeps to the protocol");
                let answer = (failure.unwrap_or(number), failure.is_some());
                match request {
                    Request::Control(control) => match effect {
                        Effect::Done(of, result) => {
                            assert!(of == control && (*result, false) == answer);
                        }
                        Effect::Failed(of, result) => {
                            assert!(of == control && (*result, true) == answer);
                        }
                        Effect::None => panic!("{control:?} is answered"),
                    },
                    Request::Statement(ticket, _) => {
                        assert_eq!(effect, Effect::None);
                        if let Some(owed) = owed.get_mut(&ticket) {
                            owed.answer = Some(answer);
                        }
                    }
                    Request::Sync => assert_eq!(effect, Effect::None),
                }
            }
            4 => {
                let ticket = Ticket::from(data.below(32));
                let expected = owed.get(&ticket).and_then(|owed| owed.answer);
                let taken = fifo.take(ticket).map(|answer| match answer {
                    Ok(result) => (*result, false),
                    Err(result) => (*result, true),
                });
                assert_eq!(taken, expected, "ticket {ticket}");
                if taken.is_some() {
                    owed.remove(&ticket);
                }
            }
            _ => {
                let level = 1 + u32::from(data.below(4));
                if data.flag() {
                    fifo.abandon_from(level);
                    owed.retain(|_, owed| owed.level < level);
                } else if level > 1 {
                    fifo.hand_up(level);
                    for owed in owed.values_mut().filter(|owed| owed.level >= level) {
                        owed.level = level - 1;
                    }
                }
            }
        }
        assert_eq!(fifo.is_idle(), requests.is_empty());
        assert_eq!(fifo.failure().map(|failure| *failure), failure);
        let due = owed.values().filter(|owed| owed.answer.is_none());
        let deepest = due.map(|owed| owed.level).max().unwrap_or(0);
        assert!(!fifo.expects_from(deepest + 1, |_| true));
        assert!(deepest == 0 || fifo.expects_from(deepest, |_| true));
    }
}

fn in_any_order(data: &mut Data) {
    let mut fifo: Fifo<u64> = Fifo::default();
    let mut number = 0;
    while !data.is_empty() {
        number += 1;
        match data.below(8) {
            0..3 => _ = ask(data, &mut fifo),
            3..5 => {
                let kind = data.choose(&[Kind::Done, Kind::Failed, Kind::Skipped, Kind::Sync]);
                if fifo.answer(kind, number).is_err() {
                    // Nothing that comes after it counts.
                    return;
                }
            }
            5 => _ = fifo.take(data.below(16).into()),
            6 => fifo.abandon(data.below(16).into()),
            _ => {
                let ticket = data.below(16).into();
                let _ = (fifo.failure_before(ticket), fifo.expects(ticket), fifo.is_ending());
                let _ = (fifo.awaits(data.choose(&CONTROLS)), fifo.awaited_savepoint());
                if data.below(8) == 1 {
                    fifo.begin_anew(data.flag().then_some(ticket));
                }
            }
        }
    }
}
