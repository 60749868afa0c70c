//! The fault proxy: stands between the coordinator and a shard and does harm at exactly one
//! statement.
//!
//! Each [`Fault`] strikes once, at the first statement whose text starts with its prefix: before
//! the server gets it, or before the client gets its answer; it cuts the connection there or holds
//! it until the test releases it. The test learns of it through the [`Hit`], and can kill a server
//! or cancel a session at that very point. New connections can be refused or left hanging, a word
//! can be replaced by another, and answers can be spoiled ([`crate::hostile`]).
//!
//! A held statement is still delivered when its client has gone meanwhile: the slow message that
//! lands late.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::DEADLINE;
use crate::hostile::Plan;
use crate::network::Host;
use crate::port::PortLease;
use crate::wire::{Conversation, Message};
use direction::{Direction, cut};
use fault::Effect;
pub use fault::{Fault, Point};

mod direction;
mod fault;

/// What happens to new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NewConnections {
    /// They are passed on.
    #[default]
    Served,
    /// They are closed at once.
    Refused,
    /// They are accepted and never answered.
    Hanging,
}

/// A running proxy in front of one server.
#[derive(Debug)]
pub struct Proxy {
    port: PortLease,
    /// Where it runs, if not where this process does.
    host: Option<Host>,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A fault that was injected; dropping it disarms the fault and releases what it holds.
#[derive(Debug)]
#[must_use = "a fault whose Hit is dropped is disarmed"]
pub struct Hit {
    shared: Arc<Shared>,
    id: u64,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    new_connections: NewConnections,
    next_id: u64,
    faults: HashMap<u64, Armed>,
    connections: HashMap<u64, [TcpStream; 2]>,
    hanging: Vec<TcpStream>,
    /// How often all connections were cut.
    cuts: u64,
    reworded: Option<[&'static str; 2]>,
    hostile: Option<Plan>,
    closed: bool,
}

#[derive(Debug)]
struct Armed {
    fault: Fault,
    /// A statement was chosen; no other will be.
    taken: bool,
    /// The text of the statement it struck.
    struck: Option<String>,
    released: bool,
}

impl Proxy {
    /// Starts a proxy for the server at `port` of this machine.
    pub fn start(port: u16) -> Result<Self> {
        Self::listen(Ipv4Addr::LOCALHOST, port)
    }

    /// Starts a proxy for the server at `port` of a host, on that host: what the cable loses, it
    /// loses between proxy and client.
    pub fn start_on(host: &Host, port: u16) -> Result<Self> {
        let mut proxy = host.inside(|| Self::listen(Ipv4Addr::UNSPECIFIED, port))?;
        proxy.host = Some(host.clone());
        Ok(proxy)
    }

    fn listen(address: Ipv4Addr, port: u16) -> Result<Self> {
        let lease = PortLease::take()?;
        let listener = TcpListener::bind((address, lease.number()))?;
        let shared = Arc::new(Shared {
            target: (Ipv4Addr::LOCALHOST, port).into(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self { port: lease, host: None, shared, acceptor: Some(acceptor) })
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Arms `fault`; it strikes once.
    pub fn inject(&self, fault: Fault) -> Hit {
        let mut state = self.shared.lock();
        let id = state.new_id();
        state.faults.insert(id, Armed { fault, taken: false, struck: None, released: false });
        Hit { shared: Arc::clone(&self.shared), id }
    }

    /// Says what happens to connections from now on; those that hang are closed when they no longer
    /// should.
    pub fn set_new_connections(&self, treatment: NewConnections) {
        let mut state = self.shared.lock();
        state.new_connections = treatment;
        if treatment != NewConnections::Hanging {
            state.hanging.clear();
        }
    }

    /// From now on the server gets the word `to` wherever a client says `from`, of the same length.
    pub fn reword(&self, from: &'static str, to: &'static str) {
        assert_eq!(from.len(), to.len(), "a message says how long it is");
        self.shared.lock().reworded = Some([from, to]);
    }

    /// From now on the server's answers are spoiled as `plan` says.
    pub fn spoil(&self, plan: Plan) {
        self.shared.lock().hostile = Some(plan);
    }

    /// From now on the server's answers pass as they are; what has been done to them until now.
    pub fn stop_spoiling(&self) -> Vec<String> {
        self.shared.lock().hostile.take().map_or_else(Vec::new, Plan::into_struck)
    }

    /// The server says something unasked to every client.
    pub fn say(&self, message: &Message) -> Result<()> {
        for [client, _] in self.shared.lock().connections.values() {
            (&mut &*client).write_all(&message.bytes)?;
        }
        Ok(())
    }

    /// How many connections hang at this moment.
    pub fn hanging(&self) -> usize {
        self.shared.lock().hanging.len()
    }

    /// Cuts every client off, as if it had died: the server is not told before it has got all that
    /// the client had sent, also what a fault holds.
    pub fn cut_clients(&self) {
        let mut state = self.shared.lock();
        state.cuts += 1;
        for [client, _] in state.connections.values() {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Cuts every connection there is.
    pub fn cut_all(&self) {
        self.shared.lock().cut_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.closed = true;
            state.hanging.clear();
        }
        self.shared.changed.notify_all();
        self.cut_all();
        // Wakes the acceptor, which then sees that it is over.
        let wake = || Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port()))?);
        let _ = match &self.host {
            Some(host) => host.inside(wake),
            None => wake(),
        };
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Hit {
    /// Waits until the fault has struck; the text of the statement.
    pub fn wait(&self) -> Result<String> {
        let give_up = Instant::now() + DEADLINE;
        let mut state = self.shared.lock();
        loop {
            let armed = &state.faults[&self.id];
            if let Some(statement) = &armed.struck {
                return Ok(statement.clone());
            }
            let Some(left) = give_up.checked_duration_since(Instant::now()) else {
                bail!("no statement '{}…' passed within {DEADLINE:?}", armed.fault.prefix);
            };
            state = match self.shared.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Whether the fault has struck.
    pub fn has_struck(&self) -> bool {
        self.shared.lock().faults[&self.id].struck.is_some()
    }

    /// Lets go what is held.
    pub fn release(&self) {
        if let Some(armed) = self.shared.lock().faults.get_mut(&self.id) {
            armed.released = true;
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Hit {
    fn drop(&mut self) {
        self.shared.lock().faults.remove(&self.id);
        self.shared.changed.notify_all();
    }
}

impl State {
    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn cut_all(&mut self) {
        self.cuts += 1;
        for (_, [client, server]) in self.connections.drain() {
            cut(&client, &server);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state whole: every change under the lock is a single step.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            let Ok(client) = client else { continue };
            let (treatment, cuts) = {
                let state = self.lock();
                if state.closed {
                    return;
                }
                (state.new_connections, state.cuts)
            };
            match treatment {
                NewConnections::Served => {
                    // When the server is down, the client sees its connection closed.
                    let _ = self.serve(client, cuts);
                }
                NewConnections::Refused => drop(client),
                NewConnections::Hanging => self.lock().hanging.push(client),
            }
        }
    }

    /// Passes on a connection that was accepted when all had been cut `cuts` times.
    fn serve(self: &Arc<Self>, client: TcpStream, cuts: u64) -> Result<()> {
        let server = TcpStream::connect(self.target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let id = {
            let mut state = self.lock();
            if state.cuts != cuts || state.new_connections != NewConnections::Served {
                return Ok(());
            }
            let id = state.new_id();
            state.connections.insert(id, [client.try_clone()?, server.try_clone()?]);
            id
        };
        let conversation = Arc::new(Mutex::new(Conversation::default()));
        let requests = Direction {
            shared: Arc::clone(self),
            conversation: Arc::clone(&conversation),
            client: client.try_clone()?,
            server: server.try_clone()?,
        };
        let answers = Direction { shared: Arc::clone(self), conversation, client, server };
        std::thread::spawn(move || {
            let _ = requests.pass_requests();
            // The server reads to the end of what was sent, then sees the end of the connection.
            let _ = requests.server.shutdown(Shutdown::Write);
        });
        std::thread::spawn(move || {
            let _ = answers.pass_answers();
            cut(&answers.client, &answers.server);
            answers.shared.lock().connections.remove(&id);
        });
        Ok(())
    }

    /// The armed fault that `statement` triggers, from now on its own.
    fn fault_for(&self, statement: &str) -> Option<(u64, Fault)> {
        let statement = statement.trim_start().to_uppercase();
        let mut state = self.lock();
        let (id, armed) = state
            .faults
            .iter_mut()
            .filter(|(_, armed)| !armed.taken && statement.starts_with(&armed.fault.prefix))
            .min_by_key(|(id, _)| **id)?;
        armed.taken = true;
        Some((*id, armed.fault.clone()))
    }

    /// Tells the test that fault `id` struck, and for a hold waits for its release. `cut` ends the
    /// connection: under the lock, so that whoever has noticed it finds that the fault struck. Where
    /// new ones are refused, all others end with it: the resolver may have one, and settle there.
    fn strike(&self, id: u64, statement: &str, effect: Effect, cut: impl FnOnce()) {
        let mut state = self.lock();
        if effect == Effect::Cut {
            cut();
            if state.new_connections == NewConnections::Refused {
                state.cut_all();
            }
        }
        if let Some(armed) = state.faults.get_mut(&id) {
            armed.struck = Some(statement.to_owned());
        }
        self.changed.notify_all();
        while effect == Effect::Hold
            && !state.closed
            && state.faults.get(&id).is_some_and(|armed| !armed.released)
        {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}
