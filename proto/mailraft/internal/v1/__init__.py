"""Log entries, stored records and peer messages, generated from the .proto files."""
