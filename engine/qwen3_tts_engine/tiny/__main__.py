import argparse
import sys
from pathlib import Path

from qwen3_tts_engine.tiny import CHECKPOINTS, SEED, SHAPES, build


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m qwen3_tts_engine.tiny", description="Write random-weight Qwen3-TTS checkpoints."
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write the checkpoints to")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CHECKPOINTS,
        default=list(CHECKPOINTS),
        metavar="NAME",
        help=f"some of {', '.join(CHECKPOINTS)} (default: all)",
    )
    parser.add_argument("--shape", choices=SHAPES, default="tiny", help="dimensions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="rebuild even what is complete")
    args = parser.parse_args()
    for name in args.only:
        path = build(args.out, name, args.seed, SHAPES[args.shape], force=args.force)
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
