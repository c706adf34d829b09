#pragma once

#include <stdexcept>
#include <string>

#include "cpnsa/require_cxx20.hpp"

namespace cpnsa {

/// Base of all exceptions of the library. The message says what was found, what was expected, and where.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A hyperparameter violates the rules of the algorithm (see Config::validate).
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A tensor, pointer, shape or partition does not match the configuration.
class ArgumentError : public Error {
 public:
  using Error::Error;
};

/// This device or build does not support a valid request; the message lists what is supported.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// The ranks were given different configurations or sequences, or made different calls.
class MismatchError : public Error {
 public:
  using Error::Error;
};

/// A transport failed, or another rank gave up; the message names that rank.
class CommunicationError : public Error {
 public:
  using Error::Error;
};

/// A wait for another rank exceeded the communicator's deadline.
class DeadlineError : public CommunicationError {
 public:
  using CommunicationError::CommunicationError;
};

/// interrupt() was called, which ends waits for other ranks.
class InterruptedError : public CommunicationError {
 public:
  using CommunicationError::CommunicationError;
};

/// The compute device reported a failure.
class DeviceError : public Error {
 public:
  using Error::Error;
};

}  // namespace cpnsa
