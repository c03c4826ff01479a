//! The control plane over a data plane that only keeps a log.
