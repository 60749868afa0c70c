//! Values that are sent: parameters as text that a participant reads in the same way, whatever this
//! session's settings are.
//!
//! While output functions run, DateStyle, IntervalStyle, extra_float_digits and search_path have
//! the values that the participant's session was set up with. To change them costs more than the
//! output itself, so it is done only for types that need it.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::{self, Datum, MemoryContext, Oid};

use crate::pg::error::{Result, catch};
use crate::pg::{node, raw};

/// Values in text form. They live in a memory context that their user resets.
pub type Values = Vec<Option<&'static CStr>>;

/// Output functions for a row of values.
pub struct Outputs {
    functions: Vec<pg_sys::FmgrInfo>,
    modes: Modes,
}

impl Outputs {
    /// The output functions of these types, which may cache something in `context`.
    ///
    /// # Safety
    /// The context outlives the value.
    pub unsafe fn new(types: impl IntoIterator<Item = Oid>, context: MemoryContext) -> Self {
        let mut this = Self { functions: Vec::new(), modes: Modes::default() };
        for oid in types {
            let (mut output, mut varlena) = (Oid::INVALID, false);
            let mut function = pg_sys::FmgrInfo::default();
            // SAFETY: catalog look-ups; the struct may move, only its `fn_extra` is in the context.
            unsafe {
                pg_sys::getTypeOutputInfo(oid, &mut output, &mut varlena);
                pg_sys::fmgr_info_cxt(output, &mut function, context);
                this.modes.add(Modes::of(oid));
            }
            this.functions.push(function);
        }
        this
    }

    /// How many values make a row.
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Which settings the output functions need.
    pub fn modes(&self) -> Modes {
        self.modes
    }

    /// The text of a value, in the current memory context.
    ///
    /// # Safety
    /// Inside `catch`, `n` less than [`Outputs::len`], and the value not NULL.
    pub unsafe fn text(&mut self, n: usize, value: Datum) -> &'static CStr {
        // SAFETY: by contract; an output function returns a C string. The lifetime is that of the
        // memory context, which callers of this module keep to.
        unsafe {
            CStr::from_ptr(raw::OutputFunctionCall(self.functions.as_mut_ptr().add(n), value))
        }
    }
}

/// The parameters of a remote query: expressions of the local plan.
pub struct Params {
    expressions: Vec<*mut pg_sys::ExprState>,
    outputs: Outputs,
    evaluated: Vec<(Datum, bool)>,
    values: Values,
}

impl Params {
    /// Prepares the expressions of `fdw_exprs`.
    ///
    /// # Safety
    /// A valid plan node being initialised, with the executor's query context current.
    pub unsafe fn new(expressions: *mut pg_sys::List, node: *mut pg_sys::PlanState) -> Self {
        // SAFETY: by contract.
        unsafe {
            let types = node::pointers(expressions).map(|e| pg_sys::exprType(e));
            let outputs = Outputs::new(types, pg_sys::CurrentMemoryContext);
            let states = pg_sys::ExecInitExprList(expressions, node);
            let count = outputs.len();
            Self {
                expressions: node::pointers(states).collect(),
                outputs,
                evaluated: Vec::with_capacity(count),
                values: Values::with_capacity(count),
            }
        }
    }

    /// Evaluates the expressions. The texts live in the per-tuple memory of the expression context.
    ///
    /// # Safety
    /// A valid context of the node they were prepared for.
    ///
    /// # Errors
    /// Whatever an expression or an output function raises.
    pub unsafe fn evaluate(
        &mut self,
        context: *mut pg_sys::ExprContext,
    ) -> Result<&[Option<&CStr>]> {
        self.evaluated.clear();
        self.values.clear();
        if self.expressions.is_empty() {
            return Ok(&self.values);
        }
        // SAFETY: by contract; the vectors have the capacity, so nothing is allocated inside. The
        // expressions run with the user's settings, their output functions do not.
        catch(|| unsafe {
            let before = raw::switch_to((*context).ecxt_per_tuple_memory);
            for &expression in &self.expressions {
                self.evaluated.push(raw::exec_eval_expr(expression, context));
            }
            let level = self.outputs.modes.enter();
            for (n, &(value, null)) in self.evaluated.iter().enumerate() {
                let text = if null { None } else { Some(self.outputs.text(n, value)) };
                self.values.push(text);
            }
            Modes::leave(level);
            raw::switch_to(before);
        })?;
        Ok(&self.values)
    }
}

/// Whether all of these expressions are external parameters of the statement, whose values are
/// known when it begins.
///
/// # Safety
/// NIL or a valid list of expressions.
pub unsafe fn are_external(expressions: *const pg_sys::List) -> bool {
    // SAFETY: by contract; the tag tells the node's type.
    unsafe {
        node::pointers::<pg_sys::Node>(expressions).all(|expression| {
            (*expression).type_ == pg_sys::NodeTag::T_Param
                && (*expression.cast::<pg_sys::Param>()).paramkind
                    == pg_sys::ParamKind::PARAM_EXTERN
        })
    }
}

/// Which settings a type's output depends on.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Modes {
    /// DateStyle, IntervalStyle and extra_float_digits.
    formats: bool,
    /// search_path.
    names: bool,
}

impl Modes {
    /// What a type needs. A type that is not known, such as a domain, a composite or an extension's
    /// type, may contain anything.
    fn of(oid: Oid) -> Self {
        match oid {
            pg_sys::BOOLOID
            | pg_sys::INT2OID
            | pg_sys::INT4OID
            | pg_sys::INT8OID
            | pg_sys::OIDOID
            | pg_sys::NUMERICOID
            | pg_sys::TEXTOID
            | pg_sys::VARCHAROID
            | pg_sys::BPCHAROID
            | pg_sys::NAMEOID
            | pg_sys::CHAROID
            | pg_sys::BYTEAOID
            | pg_sys::UUIDOID
            | pg_sys::JSONOID
            | pg_sys::JSONBOID
            | pg_sys::TIDOID
            | pg_sys::INETOID
            | pg_sys::CIDROID
            | pg_sys::MACADDROID
            | pg_sys::INT4ARRAYOID
            | pg_sys::INT8ARRAYOID
            | pg_sys::TEXTARRAYOID => Self::default(),
            pg_sys::FLOAT4OID
            | pg_sys::FLOAT8OID
            | pg_sys::DATEOID
            | pg_sys::TIMEOID
            | pg_sys::TIMETZOID
            | pg_sys::TIMESTAMPOID
            | pg_sys::TIMESTAMPTZOID
            | pg_sys::INTERVALOID => Self { formats: true, names: false },
            _ => Self { formats: true, names: true },
        }
    }

    fn add(&mut self, other: Self) {
        self.formats |= other.formats;
        self.names |= other.names;
    }

    /// Changes those settings that are needed and different; the result goes to [`Modes::leave`].
    ///
    /// # Safety
    /// Inside `catch`, whose ERROR ends the (sub)transaction: that undoes the settings.
    pub unsafe fn enter(self) -> Option<c_int> {
        // SAFETY: the variables of settings, and the names of settings that exist.
        unsafe {
            let mut level = None;
            let mut set = |name: &CStr, value: &CStr| {
                level.get_or_insert_with(|| raw::NewGUCNestLevel());
                raw::set_config_option(
                    name.as_ptr(),
                    value.as_ptr(),
                    pg_sys::GucContext::PGC_USERSET,
                    pg_sys::GucSource::PGC_S_SESSION,
                    pg_sys::GucAction::GUC_ACTION_SAVE,
                    true,
                    0,
                    false,
                );
            };
            if self.formats {
                if pg_sys::DateStyle != pg_sys::USE_ISO_DATES as c_int {
                    set(c"datestyle", c"ISO");
                }
                if pg_sys::IntervalStyle != pg_sys::INTSTYLE_POSTGRES as c_int {
                    set(c"intervalstyle", c"postgres");
                }
                if pg_sys::extra_float_digits < 3 {
                    set(c"extra_float_digits", c"3");
                }
            }
            if self.names {
                set(c"search_path", c"pg_catalog");
            }
            level
        }
    }

    /// Restores the settings.
    ///
    /// # Safety
    /// As for [`Modes::enter`], with what it returned.
    pub unsafe fn leave(level: Option<c_int>) {
        if let Some(level) = level {
            // SAFETY: by contract the level that was opened.
            unsafe { raw::AtEOXact_GUC(true, level) }
        }
    }
}
