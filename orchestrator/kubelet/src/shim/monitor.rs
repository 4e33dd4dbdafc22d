//! The stage that stays: one loop over the container's output, its end, and the kubelet's orders.

use std::{
    fs,
    io::{self, PipeReader, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{self, SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{self, Pid},
};

use super::{
    log::{Log, Stream},
    record::{self, Config, Exit, Message, Order, Running},
};
use crate::runtime::cgroup::{Group, Hierarchies};

/// Connections at a time: the kubelet's, a second kubelet's while one replaces the other, and a person's.
const CLIENT_LIMIT: usize = 4;
/// A longer order is none.
const ORDER_LIMIT_BYTES: usize = 256;
/// How long output may still come after the container has ended. Only a process that escaped the container can hold
/// its pipes open then.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// Bytes read at a time; the default size of a pipe is four times this.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Runs the container to its end.
pub(super) fn run(directory: &Path) -> bool {
    // In a session of its own, so that no Ctrl-C meant for the kubelet gets here. It fails for a session's leader.
    unistd::setsid().ok();
    let result = Monitor::start(directory).and_then(|mut monitor| {
        let result = monitor.run(directory);
        if result.is_err() {
            // Nobody would own it any more.
            monitor.group.kill();
        }
        result
    });
    match result {
        Ok(()) => true,
        Err(error) => {
            let exit = Exit {
                exit_code: record::EXIT_NOT_STARTED,
                signal: None,
                oom_killed: false,
                started_at: None,
                finished_at: Timestamp::now(),
                message: Some(format!("the container's shim failed: {error}")),
            };
            record::write(directory, record::EXIT_FILE, &exit).ok();
            false
        }
    }
}

struct Monitor {
    group: Group,
    signals: SignalFd,
    listener: UnixListener,
    clients: Vec<Client>,
    log: Log,
    outputs: Vec<(PipeReader, Stream)>,
    /// Held open so that the container's stdin does not end.
    _stdin: Option<io::PipeWriter>,
    creator: Pid,
    /// Ends that came before anybody knew whose they are.
    ended: Vec<(Pid, WaitStatus)>,
    running: Option<Running>,
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Monitor {
    fn start(directory: &Path) -> io::Result<Self> {
        let config: Config = record::read(directory, record::CONFIG_FILE)?.ok_or(io::ErrorKind::NotFound)?;
        // The stage that creates ends, and its child becomes this process's.
        prctl::set_child_subreaper(true)?;
        // The shim ends with its container, by no signal that it can refuse.
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let listener = UnixListener::bind(directory.join(record::SOCKET_FILE))?;
        listener.set_nonblocking(true)?;
        if directory.join(record::ENDING_FILE).exists() {
            return Err(io::Error::other("the runtime is being removed"));
        }
        let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        control.set_nonblocking(true)?;
        let mut log = Log::new(config.log_path, config.log_max_size_bytes, config.log_max_files);
        log.open()?;
        let (stdout, stdout_pipe) = io::pipe()?;
        let (stderr, stderr_pipe) = io::pipe()?;
        let (stdin, stdin_pipe) =
            if config.stdin { io::pipe().map(|(r, w)| (Some(r), Some(w)))? } else { (None, None) };
        let creator = create_command(directory)
            .stdin(stdin.map_or_else(Stdio::null, |pipe| Stdio::from(OwnedFd::from(pipe))))
            .stdout(OwnedFd::from(stdout_pipe))
            .stderr(OwnedFd::from(stderr_pipe))
            .spawn()?;
        Ok(Self {
            group: Group::new(Hierarchies::detect()?, config.cgroup),
            signals,
            listener,
            clients: vec![Client { stream: control, received: Vec::new() }],
            log,
            outputs: vec![(stdout, Stream::new("stdout")), (stderr, Stream::new("stderr"))],
            _stdin: stdin_pipe,
            creator: Pid::from_raw(creator.id() as i32),
            ended: Vec::new(),
            running: None,
        })
    }

    fn run(&mut self, directory: &Path) -> io::Result<()> {
        let mut exit = loop {
            self.turn(PollTimeout::NONE)?;
            if let Some(exit) = self.advance(directory)? {
                break exit;
            }
        };
        // With a process-id namespace of its own everything in it is gone already; without one, not.
        self.group.kill();
        self.drain()?;
        // The kernel's count also tells of a child that was killed while its parent went on and failed of it.
        exit.oom_killed = exit.exit_code != 0 && self.group.oom_kills() > 0;
        record::write(directory, record::EXIT_FILE, &exit)?;
        self.group.remove().ok();
        Ok(())
    }

    /// Looks at what has ended: first the stage that creates, then the container.
    fn advance(&mut self, directory: &Path) -> io::Result<Option<Exit>> {
        if self.running.is_none() {
            let Some(status) = self.take_end(self.creator) else { return Ok(None) };
            if !matches!(status, WaitStatus::Exited(_, 0)) {
                return Ok(Some(self.not_started(directory)));
            }
            let pid = fs::read_to_string(directory.join(record::PID_FILE))?;
            let pid = pid.trim().parse().map_err(io::Error::other)?;
            let running = Running { pid, shim_pid: std::process::id(), started_at: Timestamp::now() };
            record::write(directory, record::RUNNING_FILE, &running)?;
            self.tell(&Message::Started(running.clone()));
            self.running = Some(running);
        }
        let Some(running) = self.running.clone() else { return Ok(None) };
        let (exit_code, signal) = match self.take_end(Pid::from_raw(running.pid)) {
            Some(WaitStatus::Exited(_, code)) => (code, None),
            Some(WaitStatus::Signaled(_, signal, _)) => (128 + signal as i32, Some(signal as i32)),
            _ => return Ok(None),
        };
        Ok(Some(Exit {
            exit_code,
            signal,
            oom_killed: false,
            started_at: Some(running.started_at),
            finished_at: Timestamp::now(),
            message: None,
        }))
    }

    fn not_started(&mut self, directory: &Path) -> Exit {
        let reason = fs::read_to_string(directory.join(record::FAILURE_FILE))
            .unwrap_or_else(|_| "the process that creates it was killed".to_owned());
        self.tell(&Message::Failed { reason: reason.clone() });
        Exit {
            exit_code: record::EXIT_NOT_STARTED,
            signal: None,
            oom_killed: false,
            started_at: None,
            finished_at: Timestamp::now(),
            message: Some(reason),
        }
    }

    /// Waits for something to happen and takes care of it, except of ends.
    fn turn(&mut self, timeout: PollTimeout) -> io::Result<()> {
        let ready: Vec<bool> = {
            let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut fds = vec![wanted(self.signals.as_fd()), wanted(self.listener.as_fd())];
            fds.extend(self.outputs.iter().map(|(pipe, _)| wanted(pipe.as_fd())));
            fds.extend(self.clients.iter().map(|client| wanted(client.stream.as_fd())));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect()
        };
        let (outputs, clients) = ready[2..].split_at(self.outputs.len());
        self.read_outputs(outputs);
        self.serve_clients(clients);
        if ready[1] {
            self.accept();
        }
        if ready[0] {
            while self.signals.read_signal()?.is_some() {}
            self.reap()?;
        }
        Ok(())
    }

    fn read_outputs(&mut self, ready: &[bool]) {
        let mut buffer = [0u8; READ_BUFFER_BYTES];
        let mut ready = ready.iter();
        let log = &mut self.log;
        self.outputs.retain_mut(|(pipe, stream)| {
            if !ready.next().copied().unwrap_or(false) {
                return true;
            }
            match pipe.read(&mut buffer) {
                Ok(0) | Err(_) => {
                    log.finish(stream, Timestamp::now());
                    false
                }
                Ok(length) => {
                    log.feed(stream, &buffer[..length], Timestamp::now());
                    true
                }
            }
        });
    }

    fn serve_clients(&mut self, ready: &[bool]) {
        let mut orders = Vec::new();
        let mut ready = ready.iter();
        self.clients
            .retain_mut(|client| !ready.next().copied().unwrap_or(false) || client.receive(&mut orders));
        for order in orders {
            self.obey(order);
        }
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        // One too many is closed at once, and says by that that the shim lives.
        if self.clients.len() >= CLIENT_LIMIT || stream.set_nonblocking(true).is_err() {
            return;
        }
        let mut client = Client { stream, received: Vec::new() };
        if let Some(running) = &self.running {
            client.send(&Message::Started(running.clone()));
        }
        self.clients.push(client);
    }

    fn obey(&mut self, order: Order) {
        let process = self.running.as_ref().map_or(self.creator, |running| Pid::from_raw(running.pid));
        match order {
            Order::Signal(number) => {
                if let Ok(signal) = Signal::try_from(number) {
                    signal::kill(process, signal).ok();
                }
            }
            Order::Kill => {
                signal::kill(process, Signal::SIGKILL).ok();
                self.group.kill();
            }
        }
    }

    fn tell(&mut self, message: &Message) {
        self.clients.iter_mut().for_each(|client| client.send(message));
    }

    fn reap(&mut self) -> io::Result<()> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return Ok(()),
                Ok(status) => {
                    let known = self.running.as_ref().map(|running| running.pid);
                    // Once the container runs, other children are orphans that nobody asks about.
                    if let Some(pid) =
                        status.pid().filter(|pid| known.is_none_or(|known| known == pid.as_raw()))
                    {
                        self.ended.push((pid, status));
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn take_end(&mut self, pid: Pid) -> Option<WaitStatus> {
        let index = self.ended.iter().position(|(ended, _)| *ended == pid)?;
        Some(self.ended.swap_remove(index).1)
    }

    fn drain(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while !self.outputs.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.turn(PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO))?;
        }
        for (_, stream) in &mut self.outputs {
            self.log.finish(stream, Timestamp::now());
        }
        Ok(())
    }
}

impl Client {
    /// Reads orders; false if the client is gone.
    fn receive(&mut self, orders: &mut Vec<Order>) -> bool {
        let mut buffer = [0u8; ORDER_LIMIT_BYTES];
        match self.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            orders.extend(serde_json::from_slice::<Order>(&line).ok());
        }
        self.received.len() <= ORDER_LIMIT_BYTES
    }

    /// A client that cannot take a line does not read, and loses it; the records have it all.
    fn send(&mut self, message: &Message) {
        self.stream.write_all(&record::line(message)).ok();
    }
}

/// This executable again, with the same words before the stage as this process was started with.
fn create_command(directory: &Path) -> Command {
    let args: Vec<_> = std::env::args_os().collect();
    let words = args.len().saturating_sub(2).max(1);
    let mut command = Command::new("/proc/self/exe");
    command.args(&args[1..words]).arg("create").arg(directory);
    command
}
