// A connection of this process by its ends. The HTTP library hands out no socket, and older releases can't tell whether a client is
// still there while its answer is being made.
#pragma once

#include <string>

namespace lamina::serve {

// Valid while the connection is open, which it is as long as a request of it is being answered.
class ClientSocket {
 public:
  // The addresses as numbers, as in a socket's name.
  ClientSocket(const std::string& remote_address, int remote_port, int local_port);

  bool has_hung_up() const;  // has closed its end, or at least the direction to us; false when the socket was not found

 private:
  int socket_ = -1;
};

// Connections to this port get no more to read: those between two requests end.
void end_idle_connections(int local_port);

}  // namespace lamina::serve
