"""The public contract: messages and services of mailraft.v1, generated from the .proto files."""
