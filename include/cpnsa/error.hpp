#pragma once

#include <stdexcept>
#include <string>

namespace cpnsa {

/// Base of everything the library throws. The message says what was found, what was expected, and where.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A hyperparameter that breaks the algorithm's rules (see Config::validate).
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A tensor, pointer, shape or partition that does not fit the configuration.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// A valid request that this device or build cannot serve; the message lists what is supported.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// Ranks that were given different configurations, sequences or orders of calls.
class MismatchError : public Error {
 public:
  using Error::Error;
};

/// A transport failed, or another rank gave up; the message names the rank that did.
class CommunicationError : public Error {
 public:
  using Error::Error;
};

/// A wait for another rank outlasted the communicator's deadline.
class DeadlineError : public CommunicationError {
 public:
  using CommunicationError::CommunicationError;
};

/// The compute device reported a failure.
class DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace cpnsa
