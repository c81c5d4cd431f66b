//! Site policy: decide(request, policy) gives a verdict with reasons.
