"""Shapes over texts and lists of words; notation in `markup`."""

from __future__ import annotations

from dagger_nb.tasks.markup import parse

TEXT = parse("""
@join_all join link | a:words -> text
def $f($a):
    '''Return the $a joined with $sep.'''
    return %sep.join($a)

@recase style print | a:text -> text
def $f($a):
    '''Return $a in $case.'''
    return $a.%case()

@initials short mark | a:words -> text
def $f($a):
    '''Return the $end letters of the $a, joined.'''
    $t = ''
    for $a1 in $a:
        $t += $a1%end
    return $t

@affix keep pick | a:words b:letter -> words
def $f($a, $b):
    '''Return the $a that $edge with $b, in order.'''
    return [$a1 for $a1 in $a if $a1.%edge($b)]

@count_letter count tally | a:text b:letter -> int
def $f($a, $b):
    '''Return how often $b occurs in $a.'''
    $acc = «0|1:start_value»
    for $ch in $a:
        if $ch «==|!=:comparison» $b:
            $acc += «1|2:constant»
    return $acc

@longest find seek | a:words -> text
def $f($a):
    '''Return the $long of the $a, the first if equal.'''
    $best = $a[0]
    for $a1 in $a:
        if len($a1) %long len($best):
            $best = $a1
    return $best

@fill fill pad | a:text -> text
def $f($a):
    '''Return $a filled with dots on the $side to width $wid.'''
    return $a.%side(%wid, '.')

@swap_letter swap patch | a:text b:letter -> text
def $f($a, $b):
    '''Return $a with each $b replaced by $sep.'''
    return $a.replace($b, %sep)

@word_count count size | a:text -> int
def $f($a):
    '''Return how many words $a has, $op $num.'''
    return len($a.split(«' '|'-':constant»)) %op %num

@lead prefix lead | a:words b:word -> words
def $f($a, $b):
    '''Return a list of $b followed by each $a1.'''
    return [«$b + $a1|$a1 + $b:variable» for $a1 in $a]

@without clean drop | a:text b:letter -> text
def $f($a, $b):
    '''Return $a without any $b.'''
    $t = ''
    for $ch in $a:
        if $ch «!=|==:comparison» $b:
            $t += «$ch|$b:variable»
    return $t

@repeat repeat echo | a:word b:pos -> text
def $f($a, $b):
    '''Return $a repeated $b times, then $sep.'''
    return $a * «$b|($b + 1)|($b - 1):off_by_one» + %sep

@mirror mirror judge | a:text -> bool
def $f($a):
    '''Return whether $a reads the same backwards.'''
    return $a «==|!=:comparison» $a[::«-1|1:constant»]

@cut cut trim | a:text -> text
def $f($a):
    '''Return $a without its first $num letters.'''
    return $a[%num:]

@ending end tail | a:text -> text
def $f($a):
    '''Return the last $num letters of $a in $case.'''
    return $a[-%num:].%case()

@label label name | a:word b:int -> text
def $f($a, $b):
    '''Return $a, then $sep, then $b.'''
    return $a + %sep + str($b)

@join_two link couple | a:word b:word -> text
def $f($a, $b):
    '''Return $b, then $sep, then $a.'''
    return «$b|$a:variable» + %sep + $a

@sized keep sift | a:words -> words
def $f($a):
    '''Return the $a with a length $cmp $len, in order.'''
    return [$a1 for $a1 in $a if len($a1) %cmp %len]

@lengths gauge size | a:words -> ints
def $f($a):
    '''Return a list of the length of each $a1, $op $num.'''
    return [len(«$a1|$a:variable») %op %num for $a1 in $a]

@all_length total sum | a:words -> int
def $f($a):
    '''Return the sum of the lengths of the $a.'''
    $acc = «0|1:start_value»
    for $a1 in $a:
        $acc «+=|-=:operator» len(«$a1|$a:variable»)
    return $acc

@capital cap head | a:text -> text
def $f($a):
    '''Return the first letter of $a in upper case, then the rest.'''
    return $a[«0|1:off_by_one»].«upper|lower:method»() + $a[«1|0|2:off_by_one»:]

@vowels count vowel | a:text -> int
def $f($a):
    '''Return how many letters of $a are vowels.'''
    $acc = «0|1:start_value»
    for $ch in $a:
        if $ch «in|not in:boolean» 'aeiou':
            $acc += «1|2:constant»
    return $acc

@both hold match | a:text b:letter c:letter -> bool
def $f($a, $b, $c):
    '''Return whether $a has both $b and $c in it.'''
    return $b in $a «and|or:boolean» $c in $a

@by_length sort rank | a:words -> words
def $f($a):
    '''Return the $a sorted by length, from $lens.'''
    return sorted($a, key=len, reverse=%lens)

@edges ends border | a:words -> text
def $f($a):
    '''Return the first of the $a, then $sep, then the last.'''
    return $a[«0|1:off_by_one»] + %sep + $a[«-1|-2|0:off_by_one»]

@where where spot | a:words b:word -> int
def $f($a, $b):
    '''Return the index of $b in $a, counted from $st, or -1.'''
    for $i, $a1 in enumerate($a, %st):
        if $a1 «==|!=:comparison» $b:
            return $i
    return «-1|0:constant»
""")
