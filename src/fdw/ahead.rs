//! Scans that are asked for their first rows when the query begins to run, so that one wait serves
//! all of them: those that the executor is certain or likely to come to
//! ([`crate::protocol::ahead`]).
//!
//! Only queries that change and lock nothing have their scans asked ahead, because what a scan
//! shows may not depend on when it is asked.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::pg_sys::{
    self, AggStrategy, Bitmapset, CmdType, EState, ForeignScanState, NodeTag, PlanState, QueryDesc,
};

use crate::fdw::query::only_reads;
use crate::fdw::scan::Scan;
use crate::pg::backend_local::BackendLocal;
use crate::pg::error::Result;
use crate::pg::{executor_run, node};
use crate::protocol::ahead::{self, Use, scans};
use crate::remote::cache::Cached;

type Node = ahead::Node<*mut ForeignScanState>;

/// Scans of a query.
type Nodes = HashSet<*mut ForeignScanState>;

/// A scan that has begun and not ended: its query, and its node.
type Known = (*const EState, *mut ForeignScanState);

static BEGUN: BackendLocal<RefCell<Vec<Known>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// Makes a scan known as long as it lives.
pub struct Begun(*mut ForeignScanState);

impl Begun {
    /// # Safety
    /// A node that begins.
    pub unsafe fn note(node: *mut ForeignScanState) -> Self {
        // SAFETY: by contract.
        let estate = unsafe { (*node).ss.ps.state };
        BEGUN.get().borrow_mut().push((estate.cast_const(), node));
        Self(node)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut begun = BEGUN.get().borrow_mut();
        if let Some(place) = begun.iter().position(|(_, node)| *node == self.0) {
            begun.swap_remove(place);
        }
    }
}

/// Installs the hook on the run of a query; called while the server loads the library.
pub fn install() {
    executor_run::install(before_run);
}

/// # Safety
/// A valid query that has begun and was not run yet.
unsafe fn before_run(query: *mut QueryDesc, count: u64) -> Result<()> {
    // SAFETY: by contract; the nodes of a query's scans are valid until these end.
    unsafe {
        let estate = (*query).estate;
        let nodes: Nodes = {
            let begun = BEGUN.get().borrow();
            begun.iter().filter(|(of, _)| std::ptr::eq(*of, estate)).map(|(_, n)| *n).collect()
        };
        let is_select = (*query).operation == CmdType::CMD_SELECT && only_reads(estate);
        if nodes.len() < 2 || !is_select {
            return Ok(());
        }
        let needed = scans(read((*query).planstate, &nodes), count == 0);
        if needed.len() < 2 {
            return Ok(());
        }
        let mut scans_on: HashMap<*const Cached, usize> = HashMap::new();
        for &node in &nodes {
            *scans_on.entry(Rc::as_ptr(&Scan::of(node).connection())).or_default() += 1;
        }
        let _in = node::InContext::enter((*estate).es_query_cxt);
        for (node, needed) in needed {
            let scan = Scan::of(node);
            let is_alone = scans_on.get(&Rc::as_ptr(&scan.connection())) == Some(&1);
            scan.ask_ahead((*node).ss.ps.ps_ExprContext, needed, is_alone)?;
        }
        Ok(())
    }
}

/// The plan below a node. `known`: scans of ours.
unsafe fn read(state: *mut PlanState, known: &Nodes) -> Node {
    // SAFETY: NULL or a valid node of a query that has begun; the plan's tag tells its type and
    // that of its state.
    unsafe {
        let Some(this) = state.as_ref() else { return Node::Other };
        let below = || Box::new(read(this.lefttree, known));
        match (*this.plan).type_ {
            NodeTag::T_ForeignScan if known.contains(&state.cast()) => Node::Scan(state.cast()),
            NodeTag::T_Sort => Node::Whole(below()),
            NodeTag::T_Agg => match (*this.plan.cast::<pg_sys::Agg>()).aggstrategy {
                AggStrategy::AGG_SORTED => Node::Through(below()),
                _ => Node::Whole(below()),
            },
            NodeTag::T_Material
            | NodeTag::T_IncrementalSort
            | NodeTag::T_ProjectSet
            | NodeTag::T_Group
            | NodeTag::T_Unique => Node::Through(below()),
            // It may end early, by a condition on what it computes.
            NodeTag::T_WindowAgg => Node::Part(below()),
            NodeTag::T_SubqueryScan => {
                let scan = state.cast::<pg_sys::SubqueryScanState>();
                Node::Through(Box::new(read((*scan).subplan, known)))
            }
            NodeTag::T_Result => {
                let result = state.cast::<pg_sys::ResultState>();
                match (*result).resconstantqual.is_null() {
                    true => Node::Through(below()),
                    false => Node::Other,
                }
            }
            NodeTag::T_Limit => match is_limited(this.plan.cast()) {
                Some(true) => Node::Part(below()),
                Some(false) => Node::Through(below()),
                None => Node::Other,
            },
            NodeTag::T_SetOp => read_set_operation(this, known),
            NodeTag::T_Append => read_append(&*state.cast(), known),
            NodeTag::T_MergeAppend => {
                let merge = &*state.cast::<pg_sys::MergeAppendState>();
                Node::Together(chosen(merge.mergeplans, merge.ms_valid_subplans, known))
            }
            NodeTag::T_HashJoin => read_hash_join(this, known),
            NodeTag::T_MergeJoin => Node::Join {
                first: below(),
                rest: Use::Unknown,
                second: Box::new(read(this.righttree, known)),
                then: Use::Likely,
            },
            NodeTag::T_NestLoop => Node::Join {
                first: below(),
                rest: Use::Certain,
                // For one row it may need one only.
                second: Box::new(Node::Part(Box::new(read(this.righttree, known)))),
                then: Use::Likely,
            },
            _ => Node::Other,
        }
    }
}

/// Whether there is a limit of one row or more; `None` if that is not known, or it is 0.
unsafe fn is_limited(limit: *const pg_sys::Limit) -> Option<bool> {
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

/// INTERSECT or EXCEPT. From PostgreSQL 18 on the two sides are below it, before that an Append.
unsafe fn read_set_operation(this: &PlanState, known: &Nodes) -> Node {
    // SAFETY: as in `read`.
    unsafe {
        let left = Box::new(read(this.lefttree, known));
        if this.righttree.is_null() {
            return match (*this.plan.cast::<pg_sys::SetOp>()).strategy {
                pg_sys::SetOpStrategy::SETOP_HASHED => Node::Whole(left),
                _ => Node::Through(left),
            };
        }
        let second = Box::new(read(this.righttree, known));
        Node::Join { first: left, rest: Use::Unknown, second, then: Use::Likely }
    }
}

/// It executes the inner side first, or else asks the outer one for a row, to find out whether it
/// is empty.
unsafe fn read_hash_join(this: &PlanState, known: &Nodes) -> Node {
    // SAFETY: as in `read`; the inner side is a hash table's, which has what it is made of below.
    unsafe {
        let outer = Box::new(read(this.lefttree, known));
        let inner = Box::new(Node::Whole(Box::new(read((*this.righttree).lefttree, known))));
        let join = &*std::ptr::from_ref(this).cast::<pg_sys::HashJoinState>();
        // Whether rows of this side without a partner are returned: such a side is always executed.
        let fills_outer = !join.hj_NullInnerTupleSlot.is_null();
        let fills_inner = !join.hj_NullOuterTupleSlot.is_null();
        let outer_costs = (*(*this.lefttree).plan).startup_cost;
        let inner_costs = (*(*this.righttree).plan).total_cost;
        let is_needed = |fills| if fills { Use::Certain } else { Use::Likely };
        if !fills_inner && (fills_outer || outer_costs < inner_costs) {
            let (rest, then) = (is_needed(fills_outer), Use::Likely);
            Node::Join { first: outer, rest, second: inner, then }
        } else {
            let (rest, then) = (Use::Certain, is_needed(fills_outer));
            Node::Join { first: inner, rest, second: outer, then }
        }
    }
}

/// It asks what is asynchronous first, all at once. What else it executes is known unless that
/// depends on values that the query computes.
unsafe fn read_append(append: &pg_sys::AppendState, known: &Nodes) -> Node {
    // SAFETY: as in `read`.
    unsafe {
        let in_turn = Node::InTurn(chosen(append.appendplans, append.as_valid_subplans, known));
        let at_once = chosen(append.appendplans, append.as_valid_asyncplans, known);
        match at_once.is_empty() {
            true => in_turn,
            false => Node::InTurn(vec![Node::Together(at_once), in_turn]),
        }
    }
}

/// The plans of a list whose numbers are in a set.
unsafe fn chosen(
    plans: *const *mut PlanState,
    numbers: *const Bitmapset,
    known: &Nodes,
) -> Vec<Node> {
    let mut chosen = Vec::new();
    let mut number = -1;
    // SAFETY: by contract; the set holds numbers of the list, or is NULL where they are not known.
    unsafe {
        loop {
            number = pg_sys::bms_next_member(numbers, number);
            if number < 0 {
                return chosen;
            }
            chosen.push(read(*plans.add(number as usize), known));
        }
    }
}
