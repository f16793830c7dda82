"""The bash scripts that work on the repository in a container. Each ends with exit status 0 or prints why not.

They read no global configuration of git, which an image or an episode may have written.
"""

from __future__ import annotations

import shlex

OWN = "/.dagger-nb"  # a second copy of .git, its index, and a file on its way into the tree

# base: the commit that stays; attributes: for the second copy. Prints the tree's hash, then the environment.
# The last release before it stays as a tag on it: packages read their version from it, and act by it. A name without a
# digit is no release to them.
STRIP = r"""
export GIT_CONFIG_GLOBAL=/dev/null
set -u -o pipefail
fail() { echo "$1"; exit 1; }
quiet() { "$@" > /dev/null 2>&1; }
quiet command -v git || fail "the image has no git"
git=$(git rev-parse --absolute-git-dir 2>&1) || fail "no repository at /testbed: $git"
head=$(git rev-parse --verify --quiet HEAD) || fail "the repository at /testbed has no commit"
base=${base:-$head}
quiet git merge-base --is-ancestor "$base" "$head" || fail "its HEAD $head does not descend from base_commit $base"

tag=$(git describe --tags --abbrev=0 --match '*[0-9]*' "$base" 2> /dev/null)
quiet git update-ref --no-deref HEAD "$head"
git for-each-ref --format='delete %(refname)' | quiet git update-ref --no-deref --stdin || fail "cannot remove refs"
git config --local --name-only --get-regexp '^(branch|remote|url)\.' | sed 's/\.[^.]*$//' | sort -u |
  while IFS= read -r section; do quiet git config --local --remove-section "$section"; done
rm -rf "$git"/logs "$git"/worktrees "$git"/*_HEAD "$git"/objects/info/commit-graph*
rm -f "$git"/objects/pack/*.{keep,promisor}
echo "$base" > "$git/shallow" || fail "cannot write to $git"
quiet git symbolic-ref HEAD refs/heads/main && quiet git update-ref refs/heads/main "$head" || fail "cannot set HEAD"
quiet git repack -a -d && rm -f "$git/objects/info/alternates" && quiet git prune --expire=now || fail "cannot repack"
rm -rf "$git"/logs
[ -z "$tag" ] || quiet git update-ref "refs/tags/$tag" "$base" || fail "cannot keep the tag $tag"
kept=$(git rev-list --count HEAD)
found=$(git cat-file --batch-all-objects --batch-check='%(objecttype)' | grep -c -e commit -e tag)
[ "$kept" = "$found" ] || fail "$found commits and tags are left in it instead of $kept"

cp -a "$git" OWN/git && mkdir -p OWN/git/info || fail "cannot copy $git"
export GIT_DIR=OWN/git GIT_WORK_TREE=/testbed
echo "$attributes" > OWN/git/info/attributes
quiet git add -A --ignore-errors .
git write-tree || fail "cannot read the tree at /testbed"
unset GIT_DIR GIT_WORK_TREE GIT_CONFIG_GLOBAL; set +u +o pipefail
[ ! -r ~/.bashrc ] || quiet . ~/.bashrc
exec env -0
""".replace("OWN", OWN)

NO_START = 125  # exit status of DIFF where the tree to compare with is not there, or git to read it with

# start: the tree to compare with; attributes as above. Prints the patch.
DIFF = r"""
export GIT_DIR=OWN/git GIT_WORK_TREE=/testbed GIT_CONFIG_GLOBAL=/dev/null
git cat-file -e "$start^{tree}" > /dev/null 2>&1 || exit NO_START
rm -f OWN/git/index.lock && mkdir -p OWN/git/info && echo "$attributes" > OWN/git/info/attributes || exit
git add -A --ignore-errors . > /dev/null 2>&1
exec git -c core.quotePath=true diff --cached --no-color --no-ext-diff --no-textconv --no-renames --binary "$start"
""".replace("OWN", OWN).replace("NO_START", str(NO_START))

# path: absolute. Links are followed, and must not lead out of /testbed.
_PLACE = r"""
place=$(realpath -m -- "$path" 2>&1) || { echo ": Permission denied"; exit 1; }
case $place in /testbed | /testbed/*) ;; *) echo ": Permission denied"; exit 1 ;; esac
if [ -e "$place" ] && [ ! -f "$place" ] && [ ! -d "$place" ]; then echo ": Permission denied"; exit 1; fi
"""
READ = _PLACE + 'exec cat -- "$place"\n'
WRITE = _PLACE + f'mkdir -p -- "${{place%/*}}" && cat {OWN}/incoming > "$place"\n'


def script(text: str, **values: str) -> str:
    """A script behind the assignments of its variables."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + text
