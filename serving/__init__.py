"""The engine (step-level continuous batching, no gRPC in it) and the gRPC server around it."""
