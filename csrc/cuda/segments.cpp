// The host side that both libraries share, compiled into each: neither needs the other.
#include "../cpu/segments.cpp"
