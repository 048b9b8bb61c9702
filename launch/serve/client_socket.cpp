#include "launch/serve/client_socket.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <charconv>
#include <filesystem>
#include <functional>
#include <optional>

namespace lamina::serve {
namespace {

struct End {
  std::string address;
  int port = 0;
};

std::optional<End> end_of(int socket, int (*name)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  auto* address = reinterpret_cast<sockaddr*>(&storage);
  if (name(socket, address, &length) != 0 || (address->sa_family != AF_INET && address->sa_family != AF_INET6))
    return std::nullopt;
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return std::nullopt;
  return End{host, std::atoi(port)};
}

// Connections of this process to the port.
void for_connections(int local_port, const std::function<void(int socket, const End& remote)>& visit) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const std::string name = entry.path().filename();
    const int socket = std::atoi(name.c_str());
    const std::optional<End> local = end_of(socket, ::getsockname);
    if (!local || local->port != local_port) continue;
    if (const std::optional<End> remote = end_of(socket, ::getpeername)) visit(socket, *remote);
  }
}

}  // namespace

ClientSocket::ClientSocket(const std::string& remote_address, int remote_port, int local_port) {
  for_connections(local_port, [&](int socket, const End& remote) {
    if (remote.port == remote_port && remote.address == remote_address) socket_ = socket;
  });
}

bool ClientSocket::has_hung_up() const {
  if (socket_ < 0) return false;
  pollfd entry{socket_, POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

void end_idle_connections(int local_port) {
  for_connections(local_port, [](int socket, const End&) { ::shutdown(socket, SHUT_RD); });
}

}  // namespace lamina::serve
