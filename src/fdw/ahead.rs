//! Scans that are asked for their first rows when the query begins to run, so that one wait serves
//! all of them: those of which the plan says that the executor will come to them
//! ([`crate::protocol::ahead`]).
//!
//! That is for queries that only read, and call nothing that may write: what is sent to a server
//! stays in the order in which the executor would send it.

use std::cell::Cell;
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
use crate::pg::{executor_run, node};
use crate::protocol::ahead::{self, Candidate, Certain, certain, choose};

type Node = ahead::Node<*mut ForeignScanState>;

/// How many scans have begun and not ended.
static BEGUN: BackendLocal<Cell<usize>> = BackendLocal::new(Cell::new(0));

/// Counts a scan as long as it lives, so that queries without scans cost nothing here.
pub struct Begun(());

impl Begun {
    pub fn new() -> Self {
        BEGUN.get().set(BEGUN.get().get() + 1);
        Self(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        BEGUN.get().set(BEGUN.get().get() - 1);
    }
}

/// Installs the hook on the run of a query; called while the server loads the library.
pub fn install() {
    executor_run::install(before_run);
}

/// # Safety
/// A valid query that has begun and was not run yet.
unsafe fn before_run(query: *mut QueryDesc, count: u64) -> Result<()> {
    if BEGUN.get().get() < 2 {
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
        let chosen = choose(&candidates);
        let plan = (*(*query).plannedstmt).planTree;
        if chosen.is_empty() || catch(|| volatility::is_volatile(estate, plan))? {
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
        Candidate {
            connection: Rc::as_ptr(&scan.connection()).addr(),
            together: certain.together,
            is_known: scan.can_be_asked_ahead(),
            bytes: first_rows.saturating_mul(usize::try_from(plan.plan_width).unwrap_or(0)),
            fetches: ((plan.plan_rows / first_rows as f64) as usize).saturating_add(1),
        }
    }
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
    let mut nodes = Vec::new();
    let mut number = -1;
    // SAFETY: the set holds numbers of the list, or is NULL.
    unsafe {
        loop {
            number = pg_sys::bms_next_member(numbers, number);
            if number < 0 {
                return nodes;
            }
            nodes.push(read(*plans.add(number as usize)));
        }
    }
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
