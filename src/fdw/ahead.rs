//! Scans that are asked for their first rows when the query begins to run, so that one wait serves
//! all of them: those of which the plan says that the executor will come to them
//! ([`crate::protocol::ahead`]).
//!
//! What another server answers, or that it does not answer, can be noticed then before the scans
//! that come first have failed, and the locks of views are taken in another order. To that the
//! option `async_capable` of a server or a table consents, by which an Append asks its scans at
//! once. In a subtransaction even that would not do: what is under way when it fails could end the
//! whole transaction.
//!
//! It is for queries that only read, and call nothing that may write or query; and where no other
//! scan of the session uses the connection, such as one of a subquery or behind a loop, which
//! would be overtaken: what is sent to a server stays in the order in which the executor would
//! send it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::Rc;

use pgrx::pg_sys::{
    self, AggStrategy, Bitmapset, CmdType, ForeignScanState, JoinType, NodeTag, PlanState,
    QueryDesc, SetOpStrategy,
};

use crate::fdw::query::only_reads;
use crate::fdw::scan::{self, Scan};
use crate::fdw::volatility;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::{Result, catch};
use crate::pg::globals::{async_append_is_enabled, nest_level};
use crate::pg::{executor_run, node};
use crate::protocol::ahead::{self, Candidate, Certain, certain, choose};
use crate::remote::cache::Cached;
use crate::remote::options::{TableOptions, parse_bool};

type Node = ahead::Node<*mut ForeignScanState>;

/// How many scans have begun and not ended on each connection, by its address.
static BEGUN: BackendLocal<RefCell<BTreeMap<usize, usize>>> =
    BackendLocal::new(RefCell::new(BTreeMap::new()));

/// Notes that a scan uses a connection, as long as both live.
pub struct Begun(usize);

impl Begun {
    pub fn on(connection: &Rc<Cached>) -> Self {
        let address = address(connection);
        *BEGUN.get().borrow_mut().entry(address).or_default() += 1;
        Self(address)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut all = BEGUN.get().borrow_mut();
        if let Entry::Occupied(mut count) = all.entry(self.0) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

fn address(connection: &Rc<Cached>) -> usize {
    Rc::as_ptr(connection).addr()
}

/// Installs the hook on the run of a query; called while the server loads the library.
pub fn install() {
    executor_run::install(before_run);
}

/// # Safety
/// A valid query that has begun and was not run yet.
unsafe fn before_run(query: *mut QueryDesc, count: u64) -> Result<()> {
    let begun: usize = BEGUN.get().borrow().values().sum();
    // A PL/pgSQL block with an EXCEPTION clause is a subtransaction, too.
    if begun < 2 || nest_level() > 1 || !async_append_is_enabled() {
        return Ok(());
    }
    // SAFETY: by contract; the nodes and states of a query's scans are valid until it ends.
    unsafe {
        let estate = (*query).estate;
        if (*query).operation != CmdType::CMD_SELECT || !only_reads(estate) {
            return Ok(());
        }
        let scans = certain(read((*query).planstate), count == 0);
        let candidates: Vec<Candidate> = scans.iter().map(|scan| candidate(scan)).collect();
        let chosen = choose(&candidates, |n| consents(scans[n].scan));
        let plan = (*(*query).plannedstmt).planTree;
        let does_more =
            || volatility::is_volatile(estate, plan) || volatility::may_run_queries(estate, plan);
        if chosen.is_empty() || catch(does_more)? {
            return Ok(());
        }
        let _in = node::InContext::enter((*estate).es_query_cxt);
        for n in chosen {
            let node = scans[n].scan;
            Scan::of(node).ask_ahead((*node).ss.ps.ps_ExprContext)?;
        }
    }
    Ok(())
}

unsafe fn candidate(certain: &Certain<*mut ForeignScanState>) -> Candidate {
    // SAFETY: a scan of ours that has begun.
    unsafe {
        let scan = Scan::of(certain.scan);
        let plan = &*(*certain.scan).ss.ps.plan;
        let first_rows = scan.first_rows();
        let connection = address(&scan.connection());
        Candidate {
            connection,
            begun: BEGUN.get().borrow().get(&connection).copied().unwrap_or(0),
            together: certain.together,
            can_be_asked: scan.can_be_asked_ahead(),
            bytes: first_rows.saturating_mul(usize::try_from(plan.plan_width).unwrap_or(0)),
            fetches: ((plan.plan_rows / first_rows as f64) as usize).saturating_add(1),
        }
    }
}

/// Whether all tables of a scan, or their servers, have the option `async_capable`.
unsafe fn consents(state: *const ForeignScanState) -> bool {
    // SAFETY: a valid state.
    let tables = unsafe { node::scanned_tables(state) };
    tables.into_iter().all(|table| {
        let options = TableOptions::read(table);
        options.get(c"async_capable").and_then(parse_bool).unwrap_or(false)
    })
}

/// The plan below a node, as the executor of all supported versions executes it.
unsafe fn read(state: *mut PlanState) -> Node {
    // SAFETY: NULL or a valid node of a query that has begun; the plan's tag tells its type and
    // that of its state.
    unsafe {
        let Some(this) = state.as_ref() else { return Node::Other };
        let below = || Box::new(read(this.lefttree));
        match (*this.plan).type_ {
            NodeTag::T_ForeignScan if is_ours(state.cast()) => Node::Scan(state.cast()),
            NodeTag::T_Sort => Node::Whole(below()),
            NodeTag::T_Agg => match (*this.plan.cast::<pg_sys::Agg>()).aggstrategy {
                AggStrategy::AGG_PLAIN | AggStrategy::AGG_HASHED => Node::Whole(below()),
                _ => Node::Through(below()),
            },
            NodeTag::T_Material
            | NodeTag::T_IncrementalSort
            | NodeTag::T_Group
            | NodeTag::T_Unique => Node::Through(below()),
            NodeTag::T_SubqueryScan => {
                Node::Through(Box::new(read((*state.cast::<pg_sys::SubqueryScanState>()).subplan)))
            }
            // Without a condition that is evaluated before what is below it.
            NodeTag::T_Result
                if (*this.plan.cast::<pg_sys::Result>()).resconstantqual.is_null() =>
            {
                Node::Through(below())
            }
            NodeTag::T_Limit => match has_limit(this.plan.cast()) {
                Some(true) => Node::Part(below()),
                Some(false) => Node::Through(below()),
                None => Node::Other,
            },
            // From PostgreSQL 18 on it has two sides, and leaves out the second if the first is
            // empty.
            NodeTag::T_SetOp if this.righttree.is_null() => {
                match (*this.plan.cast::<pg_sys::SetOp>()).strategy {
                    SetOpStrategy::SETOP_HASHED => Node::Whole(below()),
                    _ => Node::Through(below()),
                }
            }
            NodeTag::T_Append => {
                let append = &*state.cast::<pg_sys::AppendState>();
                match append.as_nasyncplans {
                    0 => Node::InTurn(those(append.appendplans, append.as_valid_subplans)),
                    // It asks many at once by itself.
                    _ => Node::Other,
                }
            }
            NodeTag::T_MergeAppend => {
                let merge = &*state.cast::<pg_sys::MergeAppendState>();
                Node::Together(those(merge.mergeplans, merge.ms_valid_subplans))
            }
            NodeTag::T_HashJoin | NodeTag::T_MergeJoin => read_join(this),
            _ => Node::Other,
        }
    }
}

/// A join leaves out a side if there is no row on the other, unless it returns the rows of that
/// side in any case.
unsafe fn read_join(this: &PlanState) -> Node {
    // SAFETY: as in `read`; all joins begin with the same struct.
    unsafe {
        let is_hash = (*this.plan).type_ == NodeTag::T_HashJoin;
        let left = || read(this.lefttree);
        match (is_hash, (*this.plan.cast::<pg_sys::Join>()).jointype) {
            // The right side is a hash table's, which is filled first.
            (true, JoinType::JOIN_FULL) => {
                let right = read((*this.righttree).lefttree);
                Node::Together(vec![Node::Whole(Box::new(right)), left()])
            }
            // Before it needs a row of the right side, it may return any number from the left one.
            (false, JoinType::JOIN_FULL) => Node::InTurn(vec![left(), read(this.righttree)]),
            _ => Node::Other,
        }
    }
}

/// Whether it returns a limited number of rows, but for 0; `None` if that is not known.
unsafe fn has_limit(limit: *const pg_sys::Limit) -> Option<bool> {
    // SAFETY: a valid plan; the tag tells the expression's type.
    unsafe {
        let Some(count) = (*limit).limitCount.as_ref() else { return Some(false) };
        if count.type_ != NodeTag::T_Const {
            return None;
        }
        let count = &*(*limit).limitCount.cast::<pg_sys::Const>();
        match count.constisnull {
            true => Some(false),
            false => (count.constvalue.value() as i64 > 0).then_some(true),
        }
    }
}

/// The plans of a list that are executed; none if that is only known later.
unsafe fn those(plans: *const *mut PlanState, numbers: *const Bitmapset) -> Vec<Node> {
    // SAFETY: the set holds numbers of the list, or is NULL.
    unsafe { node::members(numbers).map(|number| read(*plans.add(number as usize))).collect() }
}

/// Whether it is a scan that has begun here. A modification that its server runs as a whole is
/// none.
unsafe fn is_ours(state: *const ForeignScanState) -> bool {
    // SAFETY: a valid state.
    unsafe {
        let foreign = &*(*state).ss.ps.plan.cast::<pg_sys::ForeignScan>();
        foreign.operation == CmdType::CMD_SELECT
            && !(*state).fdw_state.is_null()
            && (*(*state).fdwroutine).BeginForeignScan.is_some_and(|begin| {
                std::ptr::fn_addr_eq(begin, scan::begin as unsafe extern "C-unwind" fn(_, _))
            })
    }
}
