//! A network between a client and a server of this machine: everything arrives late by half a round
//! trip, and how often the client speaks is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::port::PortLease;

/// A link to one server.
#[derive(Debug)]
pub struct Link {
    port: PortLease,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// Half of a round trip, in nanoseconds.
    delay: AtomicU64,
    turns: AtomicU64,
    closed: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// Starts a link to the server at `port` of this machine, with that delay of a round trip.
    pub fn start(port: u16, round_trip: Duration) -> Result<Self> {
        let lease = PortLease::take()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, lease.number()))?;
        let shared = Arc::new(Shared {
            target: (Ipv4Addr::LOCALHOST, port).into(),
            delay: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        let link = Self { port: lease, shared, acceptor: Some(acceptor) };
        link.set_round_trip(round_trip);
        Ok(link)
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Changes the delay of a round trip, also for connections that exist.
    pub fn set_round_trip(&self, round_trip: Duration) {
        self.shared.delay.store(round_trip.as_nanos() as u64 / 2, Ordering::Relaxed);
    }

    /// How often clients have spoken after the server had: in the beginning, and after each answer.
    pub fn turns(&self) -> u64 {
        self.shared.turns.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        for connection in self.shared.connections.lock().iter().flat_map(|all| all.iter()) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port()));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            // When the server is down, the client sees its connection closed.
            let _ = client.map_err(anyhow::Error::from).and_then(|client| self.serve(client));
        }
    }

    fn serve(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(self.target)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        if let Ok(mut all) = self.connections.lock() {
            all.push(client.try_clone()?);
            all.push(server.try_clone()?);
        }
        let server_spoke = Arc::new(AtomicBool::new(true));
        let there = (client.try_clone()?, server.try_clone()?);
        self.carry(there, Arc::clone(&server_spoke), true);
        self.carry((server, client), server_spoke, false);
        Ok(())
    }

    /// Carries what one side says to the other, late: one thread takes it off the wire when it is
    /// said, one puts it on the wire when it is due.
    fn carry(
        self: &Arc<Self>,
        (mut from, to): (TcpStream, TcpStream),
        server_spoke: Arc<AtomicBool>,
        client: bool,
    ) {
        let (sender, receiver): (Sender<(Instant, Vec<u8>)>, _) = channel();
        let shared = Arc::clone(self);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let due =
                    Instant::now() + Duration::from_nanos(shared.delay.load(Ordering::Relaxed));
                if !client {
                    server_spoke.store(true, Ordering::Relaxed);
                } else if server_spoke.swap(false, Ordering::Relaxed) {
                    shared.turns.fetch_add(1, Ordering::Relaxed);
                }
                if sender.send((due, buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        });
        std::thread::spawn(move || deliver(&receiver, to));
    }
}

fn deliver(receiver: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    while let Ok((due, bytes)) = receiver.recv() {
        // The time on the wire, not a wait for something to happen.
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
