"""Values that readers trip over."""

NUMBERS = (
    *("0", "-1", "1", "0.5", "-0.0", "1e-320", "1e308", "-1e308", "1e400", "nan", "NaN", "inf", "-inf", "Infinity"),
    *("2147483647", "2147483648", "-2147483649", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("1" + "0" * 40, "9" * 400, "0x10", "1_000", "1,5", "١٢", "1e9", "1000000000", "True"),
)
TEXTS = (
    *("", " ", "\t", "\0", "None", "null", "NA", "=cmd()", "@SUM(A1)", "<script>alert(1)</script>", "'; --", '"'),
    *("../../outside", "/etc/passwd", "C:\\x", "~", "a" * 5000, "é", "\ud7ff", "\u202e", "x" * 70 + "\n", "\r\n"),
    *("1x1", "0x0", "-1x-1", "1e9x1e9", "fullres", "hires", "8000000x1", "0x5", "%s%n", "{}", "[]", "$(touch x)"),
)
SIZES = (0, 1, 2, 255, 65535, 1 << 20, 1_000_000_000, (1 << 31) - 1, 1 << 32, (1 << 63) - 1)
FLOATS = (0.0, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"), 0.5, 1e9, 3.4e38)
"""JSON in Python has NaN and infinity too."""
BYTES = (
    b"\0",
    b"\xff",
    b"\x80",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"\x89HDF\r\n\x1a\n",
)
