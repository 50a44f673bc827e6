"""The messages of the contract to checked values, and back: where protobuf stops."""
